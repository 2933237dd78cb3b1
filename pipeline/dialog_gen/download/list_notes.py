"""Notes on the rows of a list that could not be used as they are: how many there are of each kind, and the first."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ANOTHER_WIDTH: Final = "another number of columns than the first row"
BROKEN_QUOTE: Final = "a stray quote"
TOO_LONG: Final = "too long"
NO_OBJECT: Final = "not a JSON object"
SEVERAL_COLUMNS: Final = "more than a URL"
URL_NO_TEXT: Final = "a URL that is not text"
NO_URL: Final = "no URL"
CAPTION_NO_TEXT: Final = "a caption that is neither text nor a number: left out"
BAD_BYTES: Final = "bytes that are not UTF-8: replaced by U+FFFD"

UNUSABLE: Final = frozenset((ANOTHER_WIDTH, BROKEN_QUOTE, TOO_LONG, NO_OBJECT, SEVERAL_COLUMNS, URL_NO_TEXT, NO_URL))
"""Notes on rows that have no URL that could be fetched. Their outcome is `no_url`."""


@dataclass(slots=True)
class ListNotes:
    """Counts rows by note. A row of a list has at most one note for each of URL, caption and bytes."""

    rows: dict[str, int] = field(default_factory=dict[str, int])
    """Note -> number of rows."""
    first: dict[str, str] = field(default_factory=dict[str, str])
    """Note -> the file and line of the first such row."""

    def add(self, note: str, path: Path, place: str) -> None:
        """Counts a row; `place` is its place in the file, such as "line 3"."""
        self.rows[note] = self.rows.get(note, 0) + 1
        self.first.setdefault(note, f"{path.name}, {place}")

    def to_json(self) -> dict[str, Any]:
        """Note -> number of rows and the first of them; most frequent first."""
        by_count = sorted(self.rows.items(), key=lambda item: -item[1])
        return {note: {"rows": count, "first": self.first[note]} for note, count in by_count}


def describe(notes: dict[str, Any]) -> list[str]:
    """One line for each note in the form of `ListNotes.to_json`."""
    return [
        f"{note['rows']} row{'s' if note['rows'] != 1 else ''} of the list: {text} (first: {note['first']})"
        + (", counted as no_url" if text in UNUSABLE else "")
        for text, note in notes.items()
    ]
