"""Escapes texts of unknown origin for Markdown, so that they are shown literally; templates that escape by default."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from string import punctuation
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", '"': "&quot;"}


class Markdown(str):
    """A text that is already Markdown. Templates escape all other values."""

    __slots__ = ()


def plain(value: object, *, limit: int | None = None) -> Markdown:
    """Markdown that shows a text literally on one line, without HTML, links, mentions or formatting.

    Invisible characters (control characters, marks that change the direction of writing) are left out. A text of more
    than `limit` characters is cut off.
    """
    words = " ".join(str(value).split())
    visible = "".join(c for c in words if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    if limit is not None and len(visible) > limit:
        visible = f"{visible[: limit - 1].rstrip()}…"
    # A backslash before ASCII punctuation is Markdown's own escape; it also keeps bare addresses from becoming links.
    return Markdown("".join(_ENTITIES.get(c, f"\\{c}" if c in punctuation else c) for c in visible))


def rate(part: float, whole: float = 1) -> Markdown:
    """A fraction in percent; "-" if `whole` is 0."""
    return Markdown(f"{part / whole:.1%}" if whole else "-")


def markdown_template(text: str) -> Template:
    """A Jinja2 template of Markdown: every value in it is escaped by `plain` unless it is `Markdown`.

    Its filters return Markdown and escape their input: `number` (with thousands separators), `rate`, `listed` (joined
    by commas), `cut` (to a number of characters) and `table` (of rows; the arguments are the header).
    """
    environment = Environment(  # noqa: S701 - not HTML: `finalize` escapes for Markdown
        finalize=_escaped, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., Any]] = {
        "number": _number,
        "rate": rate,
        "listed": _listed,
        "cut": _cut,
        "table": _table,
    }
    environment.filters.update(filters)
    return environment.from_string(text)


def _escaped(value: object) -> Markdown:
    return value if isinstance(value, Markdown) else plain(value)


def _number(value: int) -> Markdown:
    return Markdown(f"{value:,}")


def _listed(values: Iterable[object]) -> Markdown:
    return Markdown(", ".join(map(_escaped, values)))


def _cut(value: object, limit: int) -> Markdown:
    return plain(value, limit=limit)


def _table(rows: Iterable[Sequence[object]], *header: str) -> Markdown:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for row in rows:
        cells = (_number(value) if isinstance(value, int) else _escaped(value) for value in row)
        lines.append(f"| {' | '.join(cells)} |")
    return Markdown("\n".join(lines))


def card_parts(card: str, titles: Collection[str]) -> list[str]:
    """The parts of a card under headings of the second level with these titles, in the card's order."""
    parts = re.split(r"^(?=## )", card, flags=re.M)[1:]
    return [part.strip() for part in parts if part.partition("\n")[0].removeprefix("## ") in titles]
