"""Claims: what source documents say, what would show it, and what the results say about it.

A claim holds if each of its tests does, does not if one of them is contradicted, and otherwise cannot be seen here. A
test is that a figure, or its difference to another, is above a bound; p-values are Holm's over the tests of all claims
of a file, and over those of all its goals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dialog_eval.metrics.significance import Difference, holm
from dialog_eval.reproduce.measured import ALONE, Figure, Measured
from dialog_eval.reproduce.plan import FOLDER
from dialog_gen.core.toml_files import find_toml, read_toml_model, shipped_toml

Verdict = Literal["holds", "does not", "cannot be seen here"]
LEVEL = 0.05


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClaimTest(_Strict):
    """One figure that must be above a bound."""

    arm: str
    alias: str = ALONE
    against_arm: str | None = None
    """None: the same arm."""
    against: str | None = None
    """What the figure is compared with, such as "baseline"; None: nothing."""
    task: str = "vqa"
    way: str = "similarity"
    """"best": the one that validation data choose for the arm."""
    against_way: str | None = None
    """None: the same way."""
    metrics: list[str] = ["accuracy"]
    against_metric: str | None = None
    """None: the same metric."""
    on: str = ""
    """What is measured on, as a measure of the plan says."""
    factor: float = 1.0
    """Of what is compared with: 0.7 and above = 30 is an error 30 % lower."""
    above: float = 0.0
    """Percentage points."""
    by_mean: bool = False
    """Whether the mean decides, for goals; otherwise the interval does."""


class Claim(_Strict):
    """A claim. `unseen` says why it cannot be seen: without tests, or where one of them was not measured."""

    claim: str
    source: str
    shows: str
    """What would show it."""
    goal: bool = False
    """A goal of this project, not a claim of a source."""
    tests: list[ClaimTest] = []
    unseen: str = ""

    @property
    def is_own(self) -> bool:
        """Whether no source says so but this project."""
        return self.source.startswith(("ours", "our probe"))


class _File(_Strict):
    claims: list[Claim]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A claim with its verdict."""

    claim: Claim
    verdict: Verdict
    figures: list[str]
    """What was measured, such as "image R@1 +0.4 [-0.1, +0.9]"; or why there is no figure."""
    one_seed: bool = False
    """Whether any of it is of one training only."""


def load_claims(name_or_file: str) -> list[Claim]:
    """The claims of a shipped file. Raises UsageError for an unknown name or another layout."""
    shipped = shipped_toml(FOLDER.parent / "claims")
    return read_toml_model(find_toml(name_or_file, shipped, "file of claims"), _File, "claims").claims


def judge(claims: Sequence[Claim], measured: Measured, best: str) -> list[Judged]:
    """The verdicts. `best`: the best way of asking of arms that were not asked on validation data."""
    tests = [
        (place, test, metric) for place, claim in enumerate(claims) for test in claim.tests for metric in test.metrics
    ]
    estimates = [_estimate(test, metric, measured, best) for _, test, metric in tests]
    missing = {place for (place, *_), estimate in zip(tests, estimates, strict=True) if estimate is None}
    seen = {place for place, *_ in tests} - missing
    adjusted = _adjusted(
        [(claims[place].goal, test, one) for (place, test, _), one in zip(tests, estimates, strict=True)]
    )
    found: list[list[tuple[Verdict, str]]] = [[] for _ in claims]
    one_seed = {place for (place, *_), one in zip(tests, estimates, strict=True) if one is not None and one.seeds == 1}
    for (place, test, metric), estimate, p in zip(tests, estimates, adjusted, strict=True):
        verdict = "cannot be seen here" if estimate is None else _verdict(test, estimate, p)
        found[place].append((verdict, _told(test, metric, estimate, _apart(test, claims[place], measured, best))))
    return [
        Judged(
            claim=claim,
            verdict=_all([verdict for verdict, _ in some]),
            figures=[told for _, told in some] + ([claim.unseen] if place not in seen and claim.unseen else []),
            one_seed=place in one_seed,
        )
        for place, (claim, some) in enumerate(zip(claims, found, strict=True))
    ]


def _adjusted(tests: Sequence[tuple[bool, ClaimTest, Difference | None]]) -> list[float]:
    """Holm's p-values, for goals (True) and claims apart; 1 for what has none or does not need one."""
    adjusted = [1.0] * len(tests)
    for family in (True, False):
        found = {
            place: one.p
            for place, (goal, test, one) in enumerate(tests)
            if goal == family and one is not None and not test.by_mean
        }
        for place, p in zip(found, holm(list(found.values())), strict=True):
            adjusted[place] = p
    return adjusted


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if not verdicts or "does not" in verdicts:
        return "does not" if verdicts else "cannot be seen here"
    return "holds" if set(verdicts) == {"holds"} else "cannot be seen here"


def _estimate(test: ClaimTest, metric: str, measured: Measured, best: str) -> Difference | None:
    way = _way(test, measured, best)
    figure = Figure(arm=test.arm, alias=test.alias, task=test.task, way=way, metric=metric, on=test.on)
    against = None
    if test.against is not None:
        against = Figure(
            arm=test.against_arm or test.arm,
            alias=test.against,
            task=test.task,
            way=test.against_way or way,
            metric=test.against_metric or metric,
            on=test.on,
        )
    return measured.estimate(figure, against, factor=test.factor, above=test.above / 100)


def _way(test: ClaimTest, measured: Measured, best: str) -> str:
    return measured.best_way(test.arm) or best if test.way == "best" else test.way


def _verdict(test: ClaimTest, estimate: Difference, p: float) -> Verdict:
    higher = estimate.mean > test.above / 100
    if test.by_mean:
        return "holds" if estimate.mean >= test.above / 100 else "does not"
    if p >= LEVEL:
        return "cannot be seen here"
    return "holds" if higher else "does not"


def _apart(test: ClaimTest, claim: Claim, measured: Measured, best: str) -> str:
    """What tells the test's figures from those of the claim's other tests, such as " by statement"."""
    differ = {
        name: len({getattr(other, name) for other in claim.tests}) > 1
        for name in ("arm", "alias", "way", "against_way")
    }
    parts = [measured.labels.get(test.arm, test.arm)] if differ["arm"] else []
    parts += [test.alias] if differ["alias"] and test.alias != ALONE else []
    way = _way(test, measured, best)
    by = f" by {way}" if differ["way"] and not differ["against_way"] else ""
    return (f" of {', '.join(parts)}" if parts else "") + by


def _told(test: ClaimTest, metric: str, estimate: Difference | None, apart: str) -> str:
    if estimate is None:
        return f"{metric}{apart}: not measured"
    sign = "+" if test.against is not None and test.factor == 1 else ""
    return f"{metric}{apart} {shown(estimate, sign)}" + (", one seed" if estimate.seeds == 1 else "")


def shown(estimate: Difference, sign: str = "") -> str:
    """A figure in percent with its interval, such as "+1.2 [+0.3, +2.1]"."""
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"
