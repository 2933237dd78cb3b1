"""Writes the generated parts of the documentation: tables of columns, recipes, gates and models, and the help texts.

    python docs/reference/make.py            # writes them
    python docs/reference/make.py --check    # exit code 1 if a page is not current

A generated part of a page stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import argparse
import ast
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import typer
from pydantic import BaseModel

from dialog_gen.dataset.record import DIALOGUES, REJECTS, STATEMENTS, dialogues_schema
from dialog_gen.publish.card import COLUMN_NOTES

DOCS = Path(__file__).parents[1]
_MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
_COMMAND_LINES = ("dialog-gen", "dialog-train", "dialog-eval")


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; vertical bars and line ends in cells are escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def plain(text: str) -> str:
    """Help text for Markdown: what would be taken for HTML is escaped, outside code spans."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;").replace("*", "\\*") for part in parts)


# --- the record ---


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type_name(kind.value_type)}"
    if pa.types.is_struct(kind):
        return "{" + ", ".join(f"{field.name}: {_type_name(field.type)}" for field in kind) + "}"
    return str(kind)


def _columns(schema: pa.Schema, without: list[str]) -> str:
    fields = [field for field in schema if field.name not in without]
    return table(
        ["Column", "Type", "Null", "Content"],
        [
            [
                f"`{field.name}`",
                f"`{_type_name(field.type)}`",
                "yes" if field.nullable else "",
                COLUMN_NOTES[field.name],
            ]
            for field in fields
        ],
    )


def record_columns() -> str:
    """The columns of accepted rows, those that only some protocols give included."""
    return _columns(dialogues_schema([STATEMENTS]), [])


def record_rejects() -> str:
    """The columns that only rejected rows have."""
    return _columns(REJECTS, DIALOGUES.names)


# --- lists ---


def gates() -> str:
    """The quality gates with the default limits of their scores."""
    from dialog_gen.gates.base import gates_in_order

    rows = [
        [f"`{name}`", gate.description, gate.settings_class().limits_text()] for name, gate in gates_in_order().items()
    ]
    return table(["Gate", "Score of a pair", "Limits"], rows)


def models() -> str:
    """The models that have a name."""
    from dialog_gen.models.registry import MODELS

    rows = [
        [
            f"`{name}`",
            entry.description,
            entry.image_tokens or "",
            "" if entry.gpu_memory_gb is None else f"{entry.gpu_memory_gb} GB",
            f"`{entry.protocol}`",
            entry.licence,
        ]
        for name, entry in MODELS.all().items()
    ]
    return table(["Name", "Model", "Tokens of an image", "GPU memory", "Protocol", "Licence of the weights"], rows)


def manifests() -> str:
    """The image sets that can be downloaded by name."""
    from dialog_gen.download.manifests import load_manifest, shipped_manifests

    loaded = [load_manifest(name) for name in shipped_manifests()]
    rows = [
        [f"`{m.name}`", ", ".join(f"{split} {count:,}" for split, count in m.rows.items()), m.licence, m.description]
        for m in loaded
    ]
    return table(["Name", "Images", "Licence", "Content"], rows)


def recipe_names() -> str:
    """The shipped recipes."""
    from dialog_train.cli import recipe_description
    from dialog_train.config import shipped_recipes

    return table(
        ["Recipe", "Content"], [[f"`{name}`", recipe_description(file)] for name, file in shipped_recipes().items()]
    )


# --- recipes ---


def recipes() -> str:
    """The keys of recipes: those of all systems, their tables, then those of each system."""
    from dialog_train.config import Recipe
    from dialog_train.systems.base import SYSTEMS

    systems = {name: SYSTEMS.get(name) for name in sorted(SYSTEMS.names())}
    tables: dict[str, type[BaseModel]] = {}
    parts = ["## Keys of all recipes", _keys(Recipe, [], tables)]
    own: list[str] = []
    for name, system in systems.items():
        own += [f"## {name}", f"{plain(system.description)} Start it with `dialog-train {name}`."]
        own.append(_keys(system.recipe, _inherited(Recipe, system.recipe), tables))
    shown: list[str] = []
    while len(shown) < len(tables):
        # The tables of tables are found while these are written.
        for title, model in list(tables.items()):
            if title not in shown:
                shown.append(title)
                parts += [f"## {title}", plain(inspect.getdoc(model) or ""), _keys(model, [], tables)]
    return "\n\n".join(filter(None, [*parts, *own]))


def _inherited(base: type[BaseModel], model: type[BaseModel]) -> list[str]:
    """The keys that a recipe has as the base class defines them."""
    same = base.model_fields.keys() & model.model_fields.keys()
    return [key for key in same if repr(base.model_fields[key]) == repr(model.model_fields[key])]


def _keys(model: type[BaseModel], without: list[str], tables: dict[str, type[BaseModel]]) -> str:
    notes = _attribute_docs(model)
    rows = []
    for key, field in model.model_fields.items():
        if key in without:
            continue
        default = field.get_default(call_default_factory=True)
        nested = _settings_in(field.annotation)
        if nested is not None:
            kind_of_table = _words(nested)
            title = f"Table {key}" if kind_of_table == key else f"Table {key}: {kind_of_table}"
            tables.setdefault(title, nested)
            note = f"See [{title}](#{_anchor(title)})."
            kind = "table" if type(None) not in get_args(field.annotation) else "table or nothing"
        else:
            note, kind = notes.get(key, ""), _type_text(field.annotation)
        shown = "required" if field.is_required() else "" if nested is not None else f"`{_value(default)}`"
        rows.append([f"`{key}`", kind, shown, " ".join(filter(None, (note, notes.get(key) if nested else "")))])
    return table(["Key", "Type", "Default", "Meaning"], rows) if rows else ""


def _words(model: type[BaseModel]) -> str:
    """The name of a class of settings in words: that of PixelSettings is "pixel"."""
    return re.sub(r"(?<=.)([A-Z])", r" \1", model.__name__.removesuffix("Settings")).lower()


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    """The table that a key takes, or that each entry of its list is."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


_TOML_TYPES = {str: "string", Path: "path", int: "integer", float: "number", bool: "boolean", type(None): "none"}


def _type_text(kind: Any) -> str:
    """A type in TOML's words, such as "string or none"."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_text(of[0])
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in of)
    if origin in (Union, UnionType):
        return " or ".join(map(_type_text, of))
    if origin in (tuple, list):
        return f"list of {_type_text(of[0])}"
    return _TOML_TYPES[kind]


def _value(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(_value, default))}]"
    return json.dumps(default)


def _attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The strings below the fields of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        (defined,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for node, after in itertools.pairwise(getattr(defined, "body", [])):
            match node, after:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = plain(text)
                case _:
                    pass
    return found


# --- the command lines ---


class _MarkdownFormatter:
    """Takes what click writes into a help text and keeps it as Markdown."""

    current_indent = 0

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.code: list[str] | None = None

    def write_usage(self, program: str, arguments: str = "", prefix: str | None = None) -> None:
        self.parts.append(f"```text\n{program} {arguments}\n```")

    def write_text(self, text: str) -> None:
        if text.strip():
            self.parts.append(plain(" ".join(text.split())))

    def write_paragraph(self) -> None:
        pass

    def write(self, line: str) -> None:
        if self.code is not None and line.strip():
            self.code.append(line.strip())

    def write_dl(self, rows: Any) -> None:
        cells = [[f"`{name}`", plain(text)] for name, text in rows if "--help" not in name]
        if cells:
            self.parts.append(table(["Name", "Meaning"], cells))
        elif self.parts and self.parts[-1].startswith("**"):
            self.parts.pop()

    def section(self, name: str) -> Any:
        return _Section(self, name)

    def indentation(self) -> Any:
        return _Section(self, "")


class _Section:
    def __init__(self, formatter: _MarkdownFormatter, name: str) -> None:
        self._formatter, self._name = formatter, name

    def __enter__(self) -> None:
        if self._name.startswith("Example"):
            self._formatter.code = []
        elif self._name:
            self._formatter.parts.append(f"**{self._name}**")

    def __exit__(self, *_: object) -> None:
        code = self._formatter.code
        if self._name.startswith("Example") and code is not None:
            self._formatter.parts.append("```bash\n" + "\n".join(code) + "\n```")
            self._formatter.code = None


def commands() -> str:
    """The help of every command of the three command lines."""
    from dialog_eval.cli import app as eval_app
    from dialog_gen.cli.app import app as gen_app
    from dialog_train.cli import app as train_app

    parts: list[str] = []
    for program, app in zip(_COMMAND_LINES, (gen_app, train_app, eval_app), strict=True):
        group = typer.main.get_command(app)
        parts += [f"## {program}", plain(group.help or "")]
        parts += _help_of(group, program)
    return "\n\n".join(parts)


def _help_of(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        yield f"### {path} {name}"
        if hasattr(command, "commands"):
            yield plain(command.help or "")
            yield from _help_of(command, f"{path} {name}")
            continue
        formatter = _MarkdownFormatter()
        command.format_help(command.context_class(command, info_name=f"{path} {name}"), formatter)
        yield from formatter.parts


PARTS: dict[str, Callable[[], str]] = {
    "record-columns": record_columns,
    "record-rejects": record_rejects,
    "gates": gates,
    "models": models,
    "manifests": manifests,
    "recipe-names": recipe_names,
    "recipes": recipes,
    "commands": commands,
}


def current(page: str) -> str:
    """A page with its generated parts as they would be written now. Raises KeyError for an unknown part."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n{found[3]}", page)


def pages() -> Iterator[Path]:
    """The pages with generated parts."""
    for path in sorted(DOCS.rglob("*.md")):
        if _MARKED.search(path.read_text(encoding="utf-8")):
            yield path


def main() -> int:
    """Writes the pages, or checks them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is not current")
    check = parser.parse_args().check
    stale = []
    for path in pages():
        there = path.read_text(encoding="utf-8")
        now = current(there)
        if now != there:
            stale.append(path)
            if not check:
                path.write_text(now, encoding="utf-8")
    for path in stale:
        print(f"{path.relative_to(DOCS.parent)} {'is not current' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
