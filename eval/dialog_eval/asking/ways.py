"""Ways of asking: what a candidate answer's score consists of. Imports nothing slow: --help imports it.

similarity   the cosine of the image and the text "question answer" (see --format)
statement    the cosine of the image and the sentence that question and answer make: as the generator of the dialogues
             states its answers, if they have statements, else by rules (TAP-C, arXiv 2203.07190)
debias       minus the candidate's score without the image (arXiv 2306.01879, NNN: 2410.24114), times a weight;
             debias:KIND says which score, see `dialog_eval.asking.debias`
prior        plus log P(answer | question without the image), times a weight
filter       candidates whose form does not answer the question are left out (TAP-C)

score = logit_scale * (cosine - debias_weight * bias) + prior_weight * log P
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dialog_gen.core.errors import UsageError, did_you_mean

TextForm = Literal["similarity", "statement"]
Calibration = Literal["mean-image", "text", "null-image", "nearest"]
"""What debias subtracts, see `dialog_eval.asking.debias`."""
Calibrate = Literal["none", Calibration]
"""The values of --calibrate."""

_DEFAULT_CALIBRATION: Calibration = "nearest"
_KINDS: dict[str, Calibration] = {f"debias:{kind}": kind for kind in get_args(Calibration)}
_DEFAULT_WEIGHTS: dict[Calibration, float] = {"mean-image": 1.0, "text": 1.0, "null-image": 1.0, "nearest": 0.75}
"""If there is nothing to choose them on; 0.75 as published."""
_AUTO = "auto"
_MOST_WEIGHT = 1000
"""Beyond it nothing but the weighted part would count, and at last no score would be finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of asking."""

    text: TextForm = "similarity"
    debias: Calibration | None = None
    prior: bool = False
    filter: bool = False

    @property
    def name(self) -> str:
        """Its parts, such as "statement + prior"."""
        return " + ".join([self.text, *(["debias" + self._kind] if self.debias else []), *self.others])

    @property
    def others(self) -> list[str]:
        """What it has besides the text and debias."""
        return [part for part in ("prior", "filter") if getattr(self, part)]

    @property
    def _kind(self) -> str:
        return "" if self.debias == _DEFAULT_CALIBRATION else f":{self.debias}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of the parts of a score."""

    debias: float = 0.0
    prior: float = 0.0


def parse_ways(text: str, calibration: Calibration = _DEFAULT_CALIBRATION) -> tuple[Way, ...]:
    """Parses --score: ways with commas between them, each of parts with + between them; equal ways are one.

    `calibration`: of a debias that does not say its kind. Raises UsageError for an unknown part, and for a way with two
    kinds of text or of debias.
    """
    kinds: dict[str, Calibration] = {"debias": calibration, **_KINDS}
    known = (*get_args(TextForm), *kinds, "prior", "filter")
    ways: list[Way] = []
    for told in text.split(","):
        parts = [part.strip() for part in told.split("+")]
        if parts == [""]:
            raise UsageError(f"--score {text!r} names no way of asking, such as similarity or statement+prior.")
        for part in parts:
            if part not in known:
                raise UsageError(
                    f"--score {text}: unknown part {part!r}, {did_you_mean(part, known)}. Parts of one way are joined "
                    "by +, several ways are separated by commas: similarity,statement+prior."
                )
        if set(get_args(TextForm)) <= set(parts):
            raise UsageError(f"--score {text}: {told.strip()} has two kinds of text; separate the ways by a comma.")
        debiased = list[Calibration](dict.fromkeys(kinds[part] for part in parts if part in kinds))
        if len(debiased) > 1:
            raise UsageError(f"--score {text}: {told.strip()} has two kinds of debias; separate the ways by a comma.")
        ways.append(
            Way(
                text="statement" if "statement" in parts else "similarity",
                debias=debiased[0] if debiased else None,
                prior="prior" in parts,
                filter="filter" in parts,
            )
        )
    return tuple(dict.fromkeys(ways))


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingOptions:
    """The ways of asking of an evaluation, checked; `of_flags` makes them."""

    ways: tuple[Way, ...]
    weights: tuple[tuple[float | None, float | None], ...]
    """Of debias and prior, for each way; None: it is chosen on held-out dialogues. 0 for what a way does not have."""
    dialogues: str | None
    held_out: str | None
    prior_model: Path | None

    @property
    def chooses(self) -> bool:
        """Whether a weight is chosen on held-out dialogues."""
        return any(None in of_way for of_way in self.weights)

    @property
    def calibrations(self) -> set[Calibration]:
        """All that is subtracted in some way."""
        return {way.debias for way in self.ways if way.debias is not None}

    def check_sources(self) -> None:
        """Raises UsageError where an option names no dataset of dialogues; reads no rows."""
        from dialog_eval.data.dialogues import open_given

        for flag, location in (("--dialogues", self.dialogues), ("--held-out", self.held_out)):
            if location is not None:
                open_given(flag, location)

    @classmethod
    def of_flags(
        cls,
        *,
        score: str | None = None,
        calibrate: Calibrate = "none",
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
        calibration = _DEFAULT_CALIBRATION if calibrate == "none" else calibrate
        if score is None:
            ways = (Way(debias=None if calibrate == "none" else calibration),)
        else:
            ways = parse_ways(score, calibration)
        debias, prior = (any(getattr(way, part) for way in ways) for part in ("debias", "prior"))
        stated = any(way.text == "statement" for way in ways)
        if calibrate != "none" and not any(way.debias == calibrate for way in ways):
            raise UsageError(
                f"--calibrate {calibrate} says what debias subtracts, and --score {score} has no debias without a kind."
            )
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

        def weight(flag: str, text: str | None, default: float) -> float | None:
            if text is None:
                return None if can_choose else default
            if (parsed := parse_weight(flag, text)) is None and not can_choose:
                raise UsageError(f"{flag} {text} is chosen on held-out dialogues: give --dialogues or --held-out.")
            return parsed

        return cls(
            ways=ways,
            weights=tuple(
                (
                    weight("--debias-weight", debias_weight, _DEFAULT_WEIGHTS[way.debias]) if way.debias else 0.0,
                    weight("--prior-weight", prior_weight, 1.0) if way.prior else 0.0,
                )
                for way in ways
            ),
            dialogues=dialogues,
            held_out=held_out,
            prior_model=prior_model,
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
            f"{flag} {text}: give a number from 0 to {_MOST_WEIGHT:,}, or auto to choose it on held-out data."
        )
    return weight
