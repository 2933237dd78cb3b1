"""What a quality gate is: it scores question-answer pairs, and its limits say which scores are doubtful.

A gate is one file of this folder, with its settings and a class that registers itself:

    class LengthSettings(Limits):
        min: Limit = 1.0

    @GATES.register("length")
    class Length(Gate[LengthSettings]):
        description = "words of the answer"
        settings_class = LengthSettings

        def score_row(self, row: Row) -> Scores: ...

Other packages add theirs by the same code, and an entry point of the group `dialog_gen.gates` that names the module.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry

Row = Mapping[str, Any]
"""A record, or those of its columns that a gate reads, and `texts`."""
Scores = list[float | None]
"""One score for each pair of a row; None where the gate cannot judge the pair."""


def _limit(value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise ValueError("a limit is a number")
    return None if value is None or math.isinf(value) else value


Limit = Annotated[float | None, AfterValidator(_limit)]


class Limits(BaseModel):
    """A gate's settings: the limits of its score, and in subclasses what else shapes it.

    With neither limit the score is stored and marks nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    min: Limit = None
    """Lower scores are marked; `-inf` removes a default."""
    max: Limit = None
    """Higher scores are marked; `inf` removes a default."""

    def is_violated(self, score: float | None) -> bool:
        """Whether a score, as it is stored, lies beyond a limit."""
        if score is None:
            return False
        # Scores are stored as float32: a reader who finds 0.6 in the column must come to the same mark.
        stored = np.float32(score)
        too_low = self.min is not None and stored < np.float32(self.min)
        return bool(too_low or (self.max is not None and stored > np.float32(self.max)))

    def limits_text(self) -> str:
        """Such as "1 to 60", "at most 0.8" or "none"."""
        if self.min is None:
            return "none" if self.max is None else f"at most {self.max:g}"
        return f"at least {self.min:g}" if self.max is None else f"{self.min:g} to {self.max:g}"

    @model_validator(mode="after")
    def _are_ordered(self) -> "Limits":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min} lies above max = {self.max}: every pair would be marked")
        return self


Settings = TypeVar("Settings", bound=Limits)


class Gate(Generic[Settings]):
    """A gate with its settings. A subclass implements `score_row`, or `score` where rows are scored faster together.

    Equal rows get equal scores, whatever other rows the dataset holds.
    """

    description: ClassVar[str]
    """What the score says, in one line."""
    settings_class: ClassVar[type[Limits]]
    columns: ClassVar[tuple[str, ...]] = ("texts",)
    """The columns of the record that it reads."""
    needs_model: ClassVar[bool] = False
    """Whether it runs a model; the others, `--gates text`, read only what the dataset holds."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Installed distributions whose version shapes the score. With another version a dataset is scored again."""
    order: ClassVar[int] = 1000
    """Gates are listed, and marks are stored, in this order, then by name."""

    def __init__(self, settings: Settings, dataset_config: Mapping[str, Any]) -> None:
        """Checks the settings and that what the gate needs is there; loads no model: it runs before a run begins.

        `dataset_config` is the configuration that the dialogues were generated with. Subclasses raise UsageError where
        the gate cannot work with it, and MissingExtraError where an extra is not installed.
        """
        self.settings = settings

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """The scores of each row, in order. It gets a row group (a hundred rows) at a time; models load at the first.

        Raises DialogGenError where a model cannot be used.
        """
        return [self.score_row(row) for row in rows]

    def score_row(self, row: Row) -> Scores:
        """The scores of one row."""
        raise NotImplementedError(f"{type(self).__name__} implements neither score nor score_row")

    def close(self) -> None:
        """Releases models; called once, even where `score` never was."""


class SetGate(Gate[Settings]):
    """A gate that judges pairs by the whole dataset: it surveys every row once before it scores the first."""

    def survey(self, rows: Sequence[Row]) -> None:
        """Takes in rows, with the same columns as `score`."""
        raise NotImplementedError

    def settle(self) -> str:
        """Ends the survey; returns a hash of everything that the scores depend on beside the row itself."""
        raise NotImplementedError


GATES: Registry[type[Gate[Any]]] = Registry("gate", "dialog_gen.gates", base=Gate, classes=True)


def gates_in_order(names: Iterable[str] | None = None) -> dict[str, type[Gate[Any]]]:
    """Name -> gate, of these names or of all known ones, in the order of every list.

    Raises UsageError for a name that is unknown or belongs to a gate that cannot be imported.
    """
    found = GATES.all() if names is None else {name: GATES.get(name) for name in names}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def description_of(name: str) -> str:
    """What a gate's score says; empty for a gate that cannot be used here, since datasets may come from elsewhere."""
    try:
        return GATES.get(name).description
    except UsageError:
        return ""
