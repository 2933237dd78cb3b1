"""Rows of a dataset as JSON values of bounded size."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from dialog_gen.dataset.record import STATEMENTS

DIALOGUE_COLUMNS = (
    "image_id", "image_sha256", "images", "url", "caption", "texts", STATEMENTS, "model", "gates", "answer_logprobs"
)  # fmt: skip
REJECT_COLUMNS = ("image_id", "image_sha256", "images", "url", "caption", "model", "status", "reason", "detail", "raw")

MOST_CHARS = 1000
"""The longest text that is shown completely where nothing else is said."""
_PAIRS = 50
_RAW = 12


def cut(value: Any, most_chars: int = MOST_CHARS) -> Any:
    """A JSON value whose longer texts, keys among them, end after `most_chars` characters and say how long they are."""
    if isinstance(value, str):
        if len(value) <= most_chars:
            return value
        return f"{value[:most_chars]} … [{len(value):,} characters]"
    if isinstance(value, Mapping):
        return {cut(str(key), most_chars): cut(item, most_chars) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cut(item, most_chars) for item in value]
    return value


def dialogue(row: Mapping[str, Any], gates: Sequence[str], *, most_chars: int = MOST_CHARS) -> dict[str, Any]:
    """An accepted row without its images; each pair has its scores in the order of `gates`, and the gates' marks."""
    pairs = [
        cut(pair | _statement(row, place), most_chars) | _scores(row, place, gates) | _logprob(row, place)
        for place, pair in enumerate(row["texts"][:_PAIRS])
    ]
    return {**_source(row), "pairs": pairs, "more": len(row["texts"]) - len(pairs)}


def reject(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the rejects without its images, with the raw answers."""
    names = ("status", "reason", "detail")
    return {**_source(row), **{name: cut(row[name]) for name in names}, "raw": cut(row["raw"][:_RAW])}


def _source(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": cut(row["image_id"])} | {name: cut(row[name]) for name in ("caption", "url", "model")}


def _statement(row: Mapping[str, Any], place: int) -> dict[str, str]:
    """`{"statement": text}`; empty if the pair has none."""
    statements = row.get(STATEMENTS)
    return {"statement": statements[place]} if statements and statements[place] else {}


def _scores(row: Mapping[str, Any], place: int, gates: Sequence[str]) -> dict[str, Any]:
    """Scores by gate, and the numbers of the gates that marked the pair; empty if no gates were applied."""
    if row["gates"] is None:
        return {}
    found = {score["gate"]: score for score in row["gates"][place]}
    scores = [_rounded(found[name]["score"]) if name in found else None for name in gates]
    marks = [number for number, name in enumerate(gates) if name in found and found[name]["marked"]]
    return {"scores": scores, "marks": marks}


def _logprob(row: Mapping[str, Any], place: int) -> dict[str, float | None]:
    """`{"logprob": mean log-probability of the answer's tokens}`; empty if it is not known."""
    known = row["answer_logprobs"]
    return {"logprob": _rounded(known[place])} if known else {}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else float(f"{value:.4g}")
