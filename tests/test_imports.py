"""Which module may import which, and what none may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("pipeline", "train", "eval") for path in (ROOT / folder).rglob("*.py"))

# Imports run one way: dialog_gen <- dialog_train <- dialog_eval.
FORBIDDEN_PACKAGES = {"pipeline": {"dialog_train", "dialog_eval"}, "train": {"dialog_eval"}, "eval": set[str]()}
MAY_IMPORT_THE_WORLD = "pipeline/dialog_gen/shapes/"
PICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve"}
# What a process and its own children tell each other through pipes, as multiprocessing does.
MAY_PICKLE = ("pipeline/dialog_gen/executors/processes.py",)
# Only these print: they make control characters in text from outside visible.
# start.py runs before the libraries of console.py are imported.
MAY_PRINT = tuple(f"pipeline/dialog_gen/core/{name}.py" for name in ("console", "progress", "start"))
PRINTERS = {"print", "typer.echo", "typer.secho", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
RISKY_FLAGS = {"trust_remote_code", "allow_pickle"}
# Importable in a moment: by the CLI's --help and by programs that only read the datasets.
LIGHT = (
    "core.errors",
    "parsing",
    "core.toml_files",
    "protocols.protocol",
    "download.manifests",
    "dataset.record",
    "gates.base",
)
HEAVY = {"torch", "transformers", "vllm"}


def imported(path: str, tree: ast.AST) -> Iterator[str]:
    """Dotted names; `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import starts from the module's package; the outer folder is none.
            package = list(Path(path).parent.parts[1:])
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def faults(path: str, source: str) -> Iterator[str]:
    """What a module at `path` (from the repository's root) must not do."""
    tree = ast.parse(source)
    for name in imported(path, tree):
        top = name.split(".")[0]
        if top in FORBIDDEN_PACKAGES[path.split("/")[0]]:
            yield f"imports {top}"
        if path not in MAY_PRINT and (top == "click" or f"{name}.".startswith("rich.")):
            yield f"imports {name}"
        if (top in PICKLERS and path not in MAY_PICKLE) or name == "torch.load":
            yield f"imports {name}"
        in_gen = path.startswith("pipeline/dialog_gen/") and not path.startswith(MAY_IMPORT_THE_WORLD)
        if in_gen and f"{name}.".startswith("dialog_gen.shapes."):
            yield f"imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load":
            yield "uses torch.load"
        if isinstance(node, ast.Call) and path not in MAY_PRINT and ast.unparse(node.func) in PRINTERS:
            yield f"calls {ast.unparse(node.func)}"
        if isinstance(node, ast.keyword) and node.arg in RISKY_FLAGS and ast.unparse(node.value) != "False":
            yield f"passes {ast.unparse(node)}"


def test_no_module_oversteps() -> None:
    paths = [path.relative_to(ROOT).as_posix() for path in SOURCES]
    assert len(paths) > 400
    found = {path: list(faults(path, (ROOT / path).read_text(encoding="utf-8"))) for path in paths}
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("pipeline/dialog_gen/x.py", "import dialog_train.loop", "imports dialog_train"),
        ("pipeline/dialog_gen/x.py", "def f():\n    from dialog_eval import vqa", "imports dialog_eval"),
        ("train/draft.py", "import dialog_eval", "imports dialog_eval"),
        ("train/dialog_train/x.py", "import dialog_gen", None),
        ("eval/dialog_eval/x.py", "import dialog_gen, dialog_train", None),
        ("pipeline/dialog_gen/x.py", "from dialog_gen import shapes", "imports dialog_gen.shapes"),
        ("pipeline/dialog_gen/engines/x.py", "from ..shapes import render", "imports dialog_gen.shapes"),
        ("pipeline/dialog_gen/x.py", "from . import shapes", "imports dialog_gen.shapes"),
        ("pipeline/dialog_gen/x.py", "from . import schema", None),
        ("pipeline/dialog_gen/x.py", "import dialog_gen.shapeses", None),
        ("pipeline/dialog_gen/cli/app.py", "import dialog_gen.shapes.fetch", "imports dialog_gen.shapes.fetch"),
        ("pipeline/dialog_gen/download/manifests.py", "import dialog_gen.shapes", "imports dialog_gen.shapes"),
        ("pipeline/dialog_gen/shapes/x.py", "from .scenes import Split", None),
        ("train/dialog_train/x.py", "import pickle", "imports pickle"),
        ("train/dialog_train/x.py", "print(1)", "calls print"),
        ("eval/dialog_eval/x.py", "import typer\ntyper.echo(1)", "calls typer.echo"),
        ("eval/dialog_eval/x.py", "from rich.console import Console", "imports rich.console"),
        ("pipeline/dialog_gen/core/console.py", "from rich.console import Console", None),
        ("train/dialog_train/x.py", "import torch\nx = torch.load('x')", "uses torch.load"),
        ("train/dialog_train/x.py", "from torch import load", "imports torch.load"),
        ("train/dialog_train/x.py", "f(trust_remote_code=True)", "passes trust_remote_code=True"),
        ("train/dialog_train/x.py", "f(trust_remote_code=x)", "passes trust_remote_code=x"),
        ("train/dialog_train/x.py", "f(trust_remote_code=False)", None),
    ],
)
def test_the_check_sees(path: str, source: str, fault: str | None) -> None:
    found = list(faults(path, source))
    assert fault in found if fault else not found


def test_light_modules_stay_light() -> None:
    script = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n importlib.import_module(name)\n print(name, *sys.modules)"
    )
    names = [f"dialog_gen.{name}" for name in LIGHT]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {line.split()[0]: set(line.split()[1:]) & HEAVY for line in done.stdout.splitlines()}
    assert loaded == {name: set() for name in names}
