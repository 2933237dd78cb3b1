"""The generated parts of the documentation are what the code says now."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

MAKE = Path(__file__).parents[2] / "docs/reference/make.py"


@pytest.fixture(scope="module")
def make() -> Any:
    spec = importlib.util.spec_from_file_location("make_reference", MAKE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_current(make: Any) -> None:
    pages = list(make.pages())
    assert {path.name for path in pages} >= {"record.md", "recipes.md", "commands.md", "gates.md", "models.md"}
    stale = [path.name for path in pages if make.current(path.read_text("utf-8")) != path.read_text("utf-8")]
    assert not stale, "run: python docs/reference/make.py"


def test_every_part_has_a_page(make: Any) -> None:
    text = "".join(path.read_text("utf-8") for path in make.pages())
    assert [part for part in make.PARTS if f"<!-- generated: {part} -->" not in text] == []


def test_an_outdated_page_would_be_found(make: Any) -> None:
    page = "# x\n\n<!-- generated: record-rejects -->\n| old |\n<!-- end -->\n\ntext\n"
    now = make.current(page)
    assert "| old |" not in now
    assert "`reason`" in now
    assert now.endswith("<!-- end -->\n\ntext\n")


def test_every_key_and_option_has_a_row(make: Any) -> None:
    """By an independent reading: names of recipe keys and of options from the classes and commands."""
    from typer.main import get_command

    from dialog_gen.cli.app import app as gen_app
    from dialog_train.config import OptimSettings

    recipes, commands = make.recipes(), make.commands()
    assert [key for key in OptimSettings.model_fields if f"| `{key}` |" not in recipes] == []
    options = [o for o in get_command(gen_app).commands["run"].params if not o.hidden and o.name != "help"]  # type: ignore[attr-defined]
    assert len(options) > 30
    assert [o.name for o in options if f"`{o.opts[0]} " not in commands and f"`{o.opts[0]}`" not in commands] == []
