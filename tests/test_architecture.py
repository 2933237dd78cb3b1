"""Imports inside the packages run one way: a package imports those before it in its list, and never in a circle."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"dialog_gen": "pipeline", "dialog_train": "train", "dialog_eval": "eval"}
LAYERS = {
    "dialog_gen": (
        "core",
        "dataset",
        "sources",
        "clip",
        "protocols",
        "parsing",
        "models",
        "engines",
        "executors",
        "gates",
        "generation",
        "download",
        "publish",
        "inspect",
        "upkeep",
        "shapes",
        "",
        "cli",
        "__main__",
    ),
    "dialog_train": (
        "processes",
        "mini_batches",
        "asking",
        "losses",
        "config",
        "preflight",
        "system",
        "data",
        "lora",
        "long_text",
        "optim",
        "sharding",
        "readings",
        "checkpoint",
        "loop",
        "text_tuning",
        "hf_processors",
        "outputs",
        "hf_export",
        "model_card",
        "push",
        "soups",
        "systems",
        "api",
        "dry_run",
        "launch",
        "world_layout",
        "world_clip",
        "",
        "cli",
        "__main__",
    ),
    "dialog_eval": (
        "metrics",
        "results",
        "models",
        "choosing",
        "data",
        "writers",
        "asking",
        "options",
        "examples",
        "tasks",
        "tables",
        "trained",
        "session",
        "api",
        "reproduce",
        "retrieval",
        "vqa",
        "",
        "cli",
        "__main__",
    ),
}
"""Rooms of a package, each with what it may import before it; "" is the package itself."""


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file."""
    root = ROOT / FOLDERS[package]
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


ALL = {name: path for package in FOLDERS for name, path in modules(package).items()}


def imported(name: str, tree: ast.AST) -> Iterator[str]:
    """The modules of our packages that a module imports anywhere, inside functions too, and by a name in quotes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in ALL)
        elif isinstance(node, ast.ImportFrom):
            parent = name if ALL[name].name == "__init__.py" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                parent = parent.rpartition(".")[0]
            base = ".".join(filter(None, [parent if node.level else "", node.module]))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield from (target for target in (full if full in ALL else base,) if target in ALL)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and node.args[0].value in ALL:
                yield str(node.args[0].value)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Module -> those that it imports. Not at import: every process that shares the tests imports this file."""
    return {
        name: set(imported(name, ast.parse(path.read_text(encoding="utf-8")))) - {name} for name, path in ALL.items()
    }


@pytest.mark.parametrize(
    "source",
    [
        "import dialog_gen.cli.app as y",
        "from dialog_gen.cli import app",
        "from ..cli import app",
        "from ..cli.app import main",
        "def f():\n    from dialog_gen.cli.app import main",
        "importlib.import_module('dialog_gen.cli.app')",
        "__import__('dialog_gen.cli.app')",
    ],
)
def test_every_form_of_import_is_seen(source: str) -> None:
    assert set(imported("dialog_gen.core.files", ast.parse(source))) == {"dialog_gen.cli.app"}


def test_what_the_package_offers_is_above_its_rooms() -> None:
    assert set(imported("dialog_gen.core.files", ast.parse("from dialog_gen import generate"))) == {"dialog_gen"}


def test_no_circle() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("package", LAYERS)
def test_no_upward_arrow(package: str) -> None:
    layers = LAYERS[package]
    assert {room_of(name) for name in modules(package)} <= set(layers)
    upward = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if name.split(".")[0] == target.split(".")[0] == package
        and layers.index(room_of(name)) < layers.index(room_of(target))
    ]
    assert upward == []


KINDS = re.findall(
    r"^\| ([\w -]+) \| `([\w.]+):(\w+)` \| `([\w/]+)` \| `([\w.]+)` \| (\d+) \|$",
    (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)

# Registers an object or class of the kind's base, without what it would need to work.
ONE_FILE = """
from {module} import {registry}
made = type("Made", ({registry}.base,), {{}})
made.__abstractmethods__ = frozenset()
{registry}.register("a_new_one")(made if {registry}.classes else object.__new__(made))
"""

# Puts a file into the folder of a kind, without touching the folder on disk, and asks the kind's registry.
ADD_ONE = """
import importlib, sys
module, attribute, package, folder = sys.argv[1:]
importlib.import_module(package).__path__.append(folder)
registry = getattr(importlib.import_module(module), attribute)
registry.get("a_new_one")
print(registry.kind, registry.package, registry.group, "made")
"""


def test_the_table_of_kinds_is_read() -> None:
    assert {kind for kind, *_ in KINDS} >= {
        *("engine", "executor", "gate", "image source", "export format", "training system", "loss", "evaluation task")
    }


@pytest.mark.parametrize(("kind", "module", "attribute", "folder", "group", "files"), KINDS)
def test_a_new_one_of_a_kind_is_one_file(
    tmp_path: Path, kind: str, module: str, attribute: str, folder: str, group: str, files: str
) -> None:
    written = tmp_path / "a_new_module.py"
    written.write_text(ONE_FILE.format(module=module, registry=attribute))
    package = ".".join(Path(folder).parts[1:])
    command = [sys.executable, "-c", ADD_ONE, module, attribute, package, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.endswith(f" {package} {group} made\n"), done.stderr
    assert len(list(tmp_path.glob("*.py"))) == int(files)


def test_the_gate_that_the_page_shows_works() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    use = """
from dialog_gen.gates.settings import load_gates
settings = load_gates({"politeness": {"word": "sorry"}})["politeness"]
gate = GATES.get("politeness")(settings, {})
texts = [{"user": "What is it?", "assistant": answer} for answer in ("Sorry, sorry", "a dog, sorry", "please")]
print(gate.score([{"texts": texts}]), [settings.is_violated(score) for score in (1.0, 0.0)])
"""
    done = subprocess.run([sys.executable, "-c", example + use], capture_output=True, text=True)
    assert done.stdout == "[[1.0, 1.0, 0.0]] [False, True]\n", done.stderr
