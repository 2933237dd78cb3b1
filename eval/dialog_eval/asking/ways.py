"""Ways of asking: what a candidate answer's score consists of. Imports nothing slow: --help imports it.

similarity   the cosine of the image and the text "question answer" (see --format)
statement    the cosine of the image and the sentence that question and answer make: as the generator of the dialogues
             states its answers, if they have statements, else by rules (TAP-C, arXiv 2203.07190)
debias       minus the candidate's score without the image (arXiv 2306.01879, NNN: 2410.24114), times a weight
prior        plus log P(answer | question without the image), times a weight
filter       candidates whose form does not answer the question are left out (TAP-C)

score = logit_scale * (cosine - debias_weight * bias) + prior_weight * log P
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dialog_gen.core.errors import UsageError, did_you_mean

TextForm = Literal["similarity", "statement"]
Calibration = Literal["none", "mean-image", "text", "null-image", "nearest"]
"""What debias subtracts, see `dialog_eval.asking.debias`."""

_ADDED = ("debias", "prior", "filter")
_AUTO = "auto"
_MOST_WEIGHT = 1000
"""Beyond it nothing but the weighted part would count, and at last no score would be finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of asking."""

    text: TextForm = "similarity"
    debias: bool = False
    prior: bool = False
    filter: bool = False

    @property
    def name(self) -> str:
        """Its parts, such as "statement + prior"."""
        return " + ".join([self.text, *(part for part in _ADDED if getattr(self, part))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of the parts of a score."""

    debias: float = 0.0
    prior: float = 0.0


def parse_ways(text: str) -> tuple[Way, ...]:
    """Parses --score: ways with commas between them, each of parts with + between them; equal ways are one.

    Raises UsageError for an unknown part, and for a way with two kinds of text.
    """
    known = (*get_args(TextForm), *_ADDED)
    ways: list[Way] = []
    for told in text.split(","):
        parts = [part.strip() for part in told.split("+")]
        for part in parts:
            if part not in known:
                raise UsageError(
                    f"--score {text}: unknown part {part!r}, {did_you_mean(part, known)}. Parts of one way are joined "
                    "by +, several ways are separated by commas: similarity,statement+prior."
                )
        if set(get_args(TextForm)) <= set(parts):
            raise UsageError(f"--score {text}: {told.strip()} has two kinds of text; separate the ways by a comma.")
        ways.append(
            Way(
                text="statement" if "statement" in parts else "similarity",
                debias="debias" in parts,
                prior="prior" in parts,
                filter="filter" in parts,
            )
        )
    return tuple(dict.fromkeys(ways))


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingOptions:
    """The ways of asking of an evaluation, checked; `of_flags` makes them."""

    ways: tuple[Way, ...]
    calibration: Calibration
    dialogues: str | None
    held_out: str | None
    prior_model: Path | None
    debias_weight: float | None
    """None: it is chosen on held-out dialogues."""
    prior_weight: float | None
    """None: it is chosen on held-out dialogues."""

    @property
    def chooses(self) -> bool:
        """Whether a weight is chosen on held-out dialogues."""
        return (self.debias_weight is None and self._some("debias")) or (
            self.prior_weight is None and self._some("prior")
        )

    def check_sources(self) -> None:
        """Raises UsageError where an option names no dataset of dialogues; reads no rows."""
        from dialog_gen.dataset.errors import NoDatasetError
        from dialog_gen.dataset.folder import open_dataset

        for flag, location in (("--dialogues", self.dialogues), ("--held-out", self.held_out)):
            try:
                if location is not None:
                    open_dataset(location)
            except NoDatasetError as error:
                told = str(error).rstrip(".")
                raise UsageError(f"{flag}: {told}: give a folder that `dialog-gen run --out` wrote.") from None

    def _some(self, part: str) -> bool:
        return any(getattr(way, part) for way in self.ways)

    @classmethod
    def of_flags(
        cls,
        *,
        score: str | None = None,
        calibrate: Calibration = "none",
        dialogues: str | None = None,
        held_out: str | None = None,
        prior_model: Path | None = None,
        debias_weight: str | None = None,
        prior_weight: str | None = None,
    ) -> "AskingOptions":
        """Checks flags and fills in defaults.

        Without `score` the way is similarity, with debias if `calibrate` says what it subtracts. Weights are chosen if
        there are dialogues, and otherwise 1, but for debias by the nearest images, where it is the published 0.75.
        Raises UsageError for flags that contradict one another, and for one that nothing uses.
        """
        ways = (Way(debias=calibrate != "none"),) if score is None else parse_ways(score)
        debias, prior = (any(getattr(way, part) for way in ways) for part in ("debias", "prior"))
        stated = any(way.text == "statement" for way in ways)
        if calibrate != "none" and not debias:
            raise UsageError(f"--calibrate {calibrate} says what debias subtracts, and --score {score} has no debias.")
        if debias and calibrate == "none":
            calibrate = "nearest"
        if prior and dialogues is None and prior_model is None:
            raise UsageError("--score with prior needs --dialogues, whose answers it counts, or a --prior-model.")
        for flag, given, part, used in (
            ("--debias-weight", debias_weight, "debias", debias),
            ("--prior-weight", prior_weight, "prior", prior),
            ("--prior-model", prior_model, "prior", prior),
            ("--dialogues", dialogues, "prior, debias or statement", prior or debias or stated),
            ("--held-out", held_out, "prior or debias", prior or debias),
        ):
            if given is not None and not used:
                raise UsageError(f"{flag} {given}: --score has no {part}, so nothing uses it.")
        fixed = all(
            given not in (None, _AUTO) for given, used in ((debias_weight, debias), (prior_weight, prior)) if used
        )
        if held_out is not None and fixed:
            raise UsageError(f"--held-out {held_out}: all weights are given, so there is none to choose on it.")
        can_choose = dialogues is not None or held_out is not None
        defaults = ("auto", "auto") if can_choose else ("0.75" if calibrate == "nearest" else "1", "1")
        told = {"--debias-weight": debias_weight or defaults[0], "--prior-weight": prior_weight or defaults[1]}
        weights = [parse_weight(flag, text) for flag, text in told.items()]
        for (flag, text), weight in zip(told.items(), weights, strict=True):
            if weight is None and not can_choose:
                raise UsageError(f"{flag} {text} is chosen on held-out dialogues: give --dialogues or --held-out.")
        return cls(
            ways=ways,
            calibration=calibrate,
            dialogues=dialogues,
            held_out=held_out,
            prior_model=prior_model,
            debias_weight=weights[0],
            prior_weight=weights[1],
        )


def parse_weight(flag: str, text: str) -> float | None:
    """Parses a weight; "auto" is None. Raises UsageError for other texts, and for a number below 0 or above 1,000."""
    if text == _AUTO:
        return None
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= _MOST_WEIGHT:
        raise UsageError(
            f"{flag} {text}: give a number from 0 to {_MOST_WEIGHT:,}, or auto to choose it on held-out dialogues."
        )
    return weight
