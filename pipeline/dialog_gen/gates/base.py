"""The base classes of quality gates. A gate scores question-answer pairs; its limits say which scores are doubtful.

Each gate has its own file in this folder, with its settings and a class that registers itself:

    class LengthSettings(Limits):
        min: Limit = 1.0

    @GATES.register("length")
    class Length(Gate[LengthSettings]):
        description = "number of words in the answer"
        settings_class = LengthSettings

        def score_row(self, row: Row) -> Scores: ...

Other packages add gates with the same code and an entry point of the group `dialog_gen.gates` that names the module.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry

if TYPE_CHECKING:
    from PIL import Image

    from dialog_gen.engines.base import Engine
    from dialog_gen.engines.start import EngineSpec

Row = Mapping[str, Any]
"""Column name -> value of one record; it has at least `texts` and the columns that the gate reads."""
Scores = list[float | None]
"""One score for each pair of a row; None if the gate cannot judge the pair."""


def _limit(value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise ValueError("a limit is a number")
    return None if value is None or math.isinf(value) else value


Limit = Annotated[float | None, AfterValidator(_limit)]


class Limits(BaseModel):
    """A gate's settings: the limits of its score. Subclasses add settings that change the score itself.

    Without any limit, scores are stored, but nothing is marked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    min: Limit = None
    """Lower scores are marked; `-inf` removes a default."""
    max: Limit = None
    """Higher scores are marked; `inf` removes a default."""

    def is_violated(self, score: float | None) -> bool:
        """Whether a score, rounded to float32 as it is stored, is below `min` or above `max`."""
        if score is None:
            return False
        # Scores are stored as float32: a reader who compares the stored score with the limit must get the same mark.
        stored = np.float32(score)
        too_low = self.min is not None and stored < np.float32(self.min)
        return bool(too_low or (self.max is not None and stored > np.float32(self.max)))

    def limits_text(self) -> str:
        """The limits in words, such as "1 to 60", "at most 0.8" or "none"."""
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
    """A gate with its settings. A subclass implements `score_row`, or `score` if several rows are faster together.

    Equal rows get equal scores. Except for a `SetGate`, other rows of the dataset have no influence.
    """

    description: ClassVar[str]
    """The meaning of the score, in one line."""
    settings_class: ClassVar[type[Limits]]
    columns: ClassVar[tuple[str, ...]] = ("texts",)
    """The columns of the record that the gate reads."""
    needs_model: ClassVar[bool] = False
    """Whether the gate runs a model. `--gates text` selects the gates that do not."""
    unscored: ClassVar[str] = ""
    """Why a dataset may have no score of this gate, as a clause with the names of settings in braces."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Installed distributions whose version can change the score. After an upgrade, a dataset is scored again."""
    order: ClassVar[int] = 1000
    """Position of the gate in lists and in stored marks; gates of equal order are sorted by name."""

    def __init__(self, settings: Settings, dataset_config: Mapping[str, Any]) -> None:
        """Checks the settings and that everything the gate needs is installed. Loads no model.

        A run makes its gates before it generates anything, so errors in the settings show at once. `dataset_config` is
        the configuration that the dialogues were generated with. Subclasses raise UsageError if the gate cannot work
        with it, and MissingExtraError if an extra is not installed.
        """
        self.settings = settings

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """The scores of each row, in order. `rows` is a row group (at most 100 rows). The first call loads the models.

        Raises DialogGenError if a model cannot be used.
        """
        return [self.score_row(row) for row in rows]

    def score_row(self, row: Row) -> Scores:
        """The scores of one row, one per pair."""
        raise NotImplementedError(f"{type(self).__name__} implements neither score nor score_row")

    def close(self) -> None:
        """Releases models. Called once, even if `score` was never called."""


class SetGate(Gate[Settings]):
    """A gate that judges pairs by the whole dataset: every row is surveyed once before the first row is scored."""

    def survey(self, rows: Sequence[Row]) -> None:
        """Collects what is needed from rows, which have the same columns as in `score`."""
        raise NotImplementedError

    def settle(self) -> str:
        """Ends the survey; returns a hash of everything that the scores depend on except the row itself."""
        raise NotImplementedError


class EngineGate(Gate[Settings]):
    """A gate that asks an engine about the image.

    If the engine of the dialogues can answer, a run asks it as soon as a dialogue is complete, while the image is in
    its cache. `score` scores all other dialogues; both ways give the same scores. An instance can be pickled before
    `score` was called: the run's workers receive it.
    """

    def can_ask(self, engine: "EngineSpec") -> bool:
        """Whether the engine that makes the dialogues can answer the gate's questions."""
        raise NotImplementedError

    async def ask(self, engine: "Engine", images: "tuple[Image.Image, ...]", row: Row) -> Scores:
        """The scores of one row, one per pair; `images` are its decoded images. Raises EngineDiedError."""
        raise NotImplementedError


GATES: Registry[type[Gate[Any]]] = Registry("gate", "dialog_gen.gates", base=Gate, classes=True)


def gates_in_order(names: Iterable[str] | None = None) -> dict[str, type[Gate[Any]]]:
    """Name -> gate class, for these names or for all known ones, sorted by `Gate.order` and name.

    Raises UsageError for a name that is unknown or belongs to a gate that cannot be imported.
    """
    found = GATES.all() if names is None else {name: GATES.get(name) for name in names}
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def why_unscored(name: str, settings: Mapping[str, Any]) -> str:
    """Why no pair of a dataset has a score of the gate; empty if the gate does not say so or is not installed here."""
    try:
        return GATES.get(name).unscored.format_map(settings)
    except (UsageError, KeyError):
        return ""


def description_of(name: str) -> str:
    """The meaning of a gate's score. Empty if the gate is not installed here: datasets may come from elsewhere."""
    try:
        return GATES.get(name).description
    except UsageError:
        return ""
