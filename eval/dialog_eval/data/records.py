"""Reads files of records, as benchmarks publish them: CSV, JSON lines or JSON."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dialog_eval.results import unpack_or
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import read_regular
from dialog_gen.core.json_text import parse_json

_Record = TypeVar("_Record")


def read_records(
    path: Path, layout: type[_Record], what: str, *, columns: Sequence[str] | None = None
) -> list[_Record]:
    """The records of a .csv, .jsonl, .jsonlines or JSON file; in JSON, a list of records or an object of them.

    `layout` is the TypedDict of a record. `columns` name the columns of a .csv in place of its first line.

    Raises UsageError, with the number of the first unsuitable record, for a file that cannot be read, is empty, or is
    not of that layout; `what` names the data.
    """
    records = _rows(path, what, columns)
    adapter: TypeAdapter[list[_Record]] = TypeAdapter(list[layout])  # type: ignore[valid-type] - a class, at run time
    try:
        return adapter.validate_python(records)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        number, *where = first["loc"]
        there = ".".join(map(str, where)) or "it"
        raise UsageError(
            f"{path} is not a file of {what}: record {int(number) + 1}: {there}: {first['msg']}."
        ) from None


def _rows(path: Path, what: str, columns: Sequence[str] | None) -> list[Any]:
    try:
        text = read_regular(path).decode("utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows: Any = list(csv.DictReader(io.StringIO(text, newline=""), columns, strict=True))
            rows = rows[1:] if columns else rows
        elif path.suffix.lower() in (".jsonl", ".jsonlines"):
            rows = [_parse_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        else:
            content = parse_json(text)
            rows = list(content.values()) if isinstance(content, dict) else content
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        remedy = unpack_or(path, "Save it as UTF-8.")
        raise UsageError(f"{path} is not a file of {what}: it is no UTF-8 text. {remedy}") from None
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{path} is not a file of {what}: {error}.") from None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} is not a file of {what}: it has no records.")
    return rows


def _parse_line(line: str, number: int) -> Any:
    try:
        return parse_json(line)
    except ValueError as error:
        # The decoder counts lines, too, but sees only this one.
        problem = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise ValueError(f"line {number}: {problem}") from None
