"""Each error that the page quotes can be found in the code."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [text.strip() for text in re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


def template(node: ast.AST) -> str:
    """A text of the code, with … for what is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


@functools.cache
def templates() -> set[str]:
    """Of all texts. Not at import: every process that shares the tests imports this file."""
    files = [path for folder in ("pipeline", "train", "eval") for path in (ROOT / folder).rglob("*.py")]
    return {template(node) for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))} - {""}


def is_in_code(quoted: str) -> bool:
    pattern = re.compile(".*".join(re.escape(part) for part in re.split("…+", quoted)), re.DOTALL)
    return any(pattern.search(text) for text in templates())


@pytest.mark.parametrize("quoted", QUOTED)
def test_error_is_in_the_code(quoted: str) -> None:
    assert sum(map(str.isalpha, quoted)) > 10
    assert is_in_code(quoted)


def test_there_are_errors_and_a_wrong_one_would_be_found() -> None:
    assert len(QUOTED) > 30
    assert not is_in_code("… is no such error at all: …")


def test_reasons_are_those_of_the_code() -> None:
    from dialog_gen.protocols.parsing import REASONS
    from dialog_gen.sources.images import UNREADABLE_REASONS
    from dialog_gen.sources.unused import UNUSED_REASONS

    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {*REASONS, *UNREADABLE_REASONS, *UNUSED_REASONS} <= named
