"""The results of evaluations: results.json files, which `dialog-eval table` reads. Also reads other JSON files.

An entry is one model (or blend) on one task. Entries of several files with the same label and task are repetitions,
such as seeds. An entry contains the value of every item, so that two models can be compared item by item, even if they
were measured separately.
"""

import codecs
import itertools
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dialog_eval.metrics.intervals import bootstrap_interval
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import read_regular, write_file
from dialog_gen.core.sealed_json import DamagedJsonError, checked, sealed

Blend = Literal["embedding", "weight"]
"""What is blended: text vectors, or the weights of text towers. See `dialog_eval.models`."""

_Layout = TypeVar("_Layout", bound=BaseModel)
_FORMAT = "dialog-eval results"
_HEAD = 100
"""Bytes at the beginning of a results.json in which its format stands."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Metric(_Strict):
    """One measure of an entry, with its value for every item."""

    name: str
    """Such as "accuracy", "accuracy, yes/no", "image R@1" """
    values: list[float]
    """(items,), the metric is their mean; hits and accuracies are from 0 to 1"""
    groups: list[int] | None = None
    """(items,): group of each item, such as its image; None if the items are independent"""
    mean: float
    low: float
    high: float
    """End of the 95 % bootstrap interval of the mean, which begins at `low`"""

    @classmethod
    def of(cls, name: str, values: Iterable[float], groups: Iterable[int] | None = None) -> "Metric":
        """Computes mean and interval. Raises ValueError for no values, or if `groups` has another length."""
        listed, belonging = [float(v) for v in values], None if groups is None else [int(g) for g in groups]
        mean, low, high = bootstrap_interval(listed, groups=belonging)
        return cls(name=name, values=listed, groups=belonging, mean=mean, low=low, high=high)

    @model_validator(mode="after")
    def _fits(self) -> "Metric":
        if not self.values or (self.groups is not None and len(self.groups) != len(self.values)):
            raise ValueError("values must not be empty, and groups be as many")
        return self


class Asked(_Strict):
    """The weights in the scores of a way of asking, and how they were chosen."""

    way: str
    """Such as "statement + prior" """
    debias_weight: float | None = None
    """None if the way has no debias"""
    prior_weight: float | None = None
    """None if the way has no prior"""
    chosen_on: str | None = None
    """The held-out data on which the weights were chosen; None if they were given"""
    tried: list[dict[str, float]] = []
    """For each choice: `debias_weight`, `prior_weight` and the measure on the held-out data"""

    def text(self) -> str:
        """A sentence about the weights, without the full stop."""
        weights = [
            f"{name} weight {value:g}"
            for name, value in (("debias", self.debias_weight), ("prior", self.prior_weight))
            if value is not None
        ]
        return f"{' and '.join(weights)}, {f'chosen on {self.chosen_on}' if self.chosen_on else 'as given'}"


class Shown(_Strict):
    """A text, an image, or both."""

    text: str | None = None
    image_id: str | None = None
    thumbnail: str | None = None
    """A small WebP of the image, as base64"""


class Example(_Strict):
    """An item, and what two models make of it."""

    item: Shown
    """What is asked: a question about an image, or a query of a search"""
    right: Shown
    answer: Shown
    baseline_answer: Shown

    def parts(self) -> list[Shown]:
        """All that is shown of it."""
        return [self.item, self.right, self.answer, self.baseline_answer]


class Examples(_Strict):
    """Some items, drawn at random, that a model has right and the baseline wrong, and the other way round."""

    baseline: str
    """The label of the baseline"""
    measure: str
    """The measure by which answers are right, such as "accuracy" """
    win_count: int
    """Number of all items of which `wins` are drawn"""
    loss_count: int
    wins: list[Example]
    losses: list[Example]


class Entry(_Strict):
    """One model, or one blend of two, on one task."""

    label: str
    """The row of the table, such as "base", "DRAFT", "DRAFT, embedding blend 0.9" """
    task: str = Field(min_length=1)
    """What was measured, such as "vqa" or "captioning"; `dialog_eval.tasks` defines how it is shown"""
    dataset: str
    """Name and first digits of the SHA-256 of the task's files; only entries with equal datasets are compared"""
    protocol: str
    """How it was measured, such as "MC-18, official accuracy" """
    model: str
    weights_sha256: str
    blend: Blend | None = None
    beta: float | None = Field(default=None, ge=0, le=1)
    """Share of the baseline in a blend"""
    noise: float | None = Field(default=None, ge=0)
    """Standard deviation of the noise on the text vectors in the training of a decoder"""
    asked: Asked | None = None
    """The weights of the way of asking, if it has any"""
    notes: list[str] = []
    """What to know about figures of this entry, such as that they need no image"""
    metrics: list[Metric]
    examples: Examples | None = None
    """None for the baseline, for a model without one, for blends, and where none were asked for"""

    def all_notes(self) -> list[str]:
        """The weights of the way of asking, and the notes."""
        return [*([self.asked.text()] if self.asked else []), *self.notes]

    def metric(self, name: str) -> Metric | None:
        """The metric with that name, or None."""
        return next((metric for metric in self.metrics if metric.name == name), None)


class Reference(_Strict):
    """A reference value that needs no model, such as always answering "yes"; shown beside the entries."""

    name: str
    task: str = Field(min_length=1)
    dataset: str
    metric: str
    value: float


class Results(_Strict):
    """The content of a results.json, which also has a checksum: the values of a damaged file are not compared."""

    format: Literal["dialog-eval results 1"] = "dialog-eval results 1"
    baseline: str | None = None
    """Label of the entry that the others are compared with"""
    entries: list[Entry]
    references: list[Reference] = []
    settings: dict[str, Any] = {}
    """Versions, options and checkpoints: what is needed to repeat the evaluation"""

    def save(self, path: Path) -> None:
        """Writes the file; replaces an existing one. Raises DialogGenError if the disk refuses the write."""
        write_file(path, f"{json.dumps(sealed(self.model_dump(mode='json')))}\n".encode())

    @model_validator(mode="before")
    @classmethod
    def _is_intact(cls, content: Any) -> Any:
        return checked(content)


def load_results(path: Path, *, remedy: str = "") -> Results:
    """Reads a results.json. Raises UsageError, with the `remedy`, for one that cannot be read or has another layout."""
    return read_json_file(path, Results, "is no results.json of dialog-eval", remedy=remedy)


def read_json_file(
    path: Path,
    layout: type[_Layout],
    complaint: str,
    hint: str = "",
    error_type: type[UsageError] = UsageError,
    *,
    remedy: str = "",
) -> _Layout:
    """Reads and validates a JSON file. A byte-order mark is skipped.

    `complaint` is the error for a file of another layout, such as "is not a captions file". `hint` is added to it if a
    top-level key is missing, `remedy` to the errors of a file of another layout in place of all others.

    Raises `error_type` for a file that cannot be read, is not JSON, or has another layout.
    """
    try:
        return layout.model_validate_json(read_regular(path).removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if remedy:
            hint = remedy
        elif isinstance(first.get("ctx", {}).get("error"), DamagedJsonError):
            hint = 'Measure again, or fetch it again; if it was changed on purpose, remove the key "sha256" from it.'
        elif first["type"] == "json_invalid":
            hint = unpack_or(path, "It is damaged or cut off: fetch it again.")
        elif first["type"] != "missing" or len(first["loc"]) != 1:
            hint = ""
        where = ".".join(map(str, first["loc"])) or "the file"
        raise error_type(
            f"{path} {complaint}: {where}: {first['msg'].removeprefix('Value error, ')}. {hint}".rstrip()
        ) from None


def unused_name(name: str, used: Collection[str]) -> str:
    """The name, or the first of "name (2)", "name (3)", ... that is not used."""
    names = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
    return next(one for one in names if one not in used)


def unpack_or(path: Path, remedy: str) -> str:
    """What to do about a file that cannot be read as text."""
    return "Unpack it, and give the file in it." if path.suffix.lower() == ".zip" else remedy


def check_writable(out: Path) -> None:
    """Raises UsageError if results cannot be written to `out`, or would replace a file that is none of results.

    Called before an evaluation, which may take hours.
    """
    part = out.with_name(out.name + ".part")
    try:
        if out.is_dir():
            raise UsageError(f"--out {out} is a folder: give the name of a file, such as {out / 'results.json'}.")
        if out.is_file() and out.stat().st_size:
            with out.open("rb") as file:
                if _FORMAT.encode() not in file.read(_HEAD):
                    raise UsageError(f"--out {out} exists and is no results.json of dialog-eval: choose another file.")
        out.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error.strerror or error}.") from None
