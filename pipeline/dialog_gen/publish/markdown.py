"""Markdown of texts that strangers wrote: they show as they are and do nothing."""

import unicodedata
from collections.abc import Iterable, Sequence
from string import punctuation

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;"}


def plain(text: object, *, limit: int | None = None) -> str:
    """A text that Markdown shows literally, on one line: no HTML, links, mentions or formatting come of it.

    What cannot be seen (control characters, marks that change the direction of writing) is left out; what is longer
    than `limit` characters is cut.
    """
    words = " ".join(str(text).split())
    seen = "".join(c for c in words if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    if limit is not None and len(seen) > limit:
        seen = f"{seen[: limit - 1].rstrip()}…"
    # A backslash before ASCII punctuation is Markdown's own way to write it; it also breaks what would become links.
    return "".join(_ENTITIES.get(c, f"\\{c}" if c in punctuation else c) for c in seen)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table; what stands in it is Markdown already. Numbers get thousands separators."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    return lines


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def rate(part: float, whole: float = 1) -> str:
    """A fraction in percent; "-" of nothing."""
    return f"{part / whole:.1%}" if whole else "-"
