"""The figures of a plan's results, found by arm, task, way of asking and metric."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dialog_eval.metrics.significance import Difference, difference
from dialog_eval.reproduce.plan import VALIDATION
from dialog_eval.reproduce.steps import Step
from dialog_eval.results import Entry, Results, load_results

ALONE, BASELINE = "alone", "baseline"
RECALLS = tuple(f"{side} R@{k}" for side in ("image", "text") for k in (1, 5, 10))
_SIMILARITY = "similarity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What identifies a figure of an arm."""

    arm: str
    alias: str = ALONE
    """"alone", "baseline", or what follows the arm's label, such as "averaged" or "embedding blend 0.9"; "baseline,
    blind" is the baseline without images."""
    task: str = "vqa"
    way: str = _SIMILARITY
    """Of asking; for retrieval, "debias" is with a query bank."""
    metric: str = "accuracy"
    on: str = ""
    """What the measure was on; "" for the plan's main data."""

    @property
    def is_untuned(self) -> bool:
        """Whether it is of the baseline, which no training changes."""
        return self.alias.split(",")[0] == BASELINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """A figure's value for each seed and item; where trainings have starts, the mean over the seeds of each start."""

    values: list[list[float]]
    """(seeds, items), or (starts, items)"""
    rows: list[int]
    """Seeds, or starts; of a model that no training changes, that of the first results that have it."""
    trainings: int
    groups: list[int] | None
    trained: bool
    """Whether other seeds would give other values."""
    notes: list[list[str]]
    """What the results of each training say about their figures."""

    def of(self, rows: Sequence[int]) -> list[list[float]]:
        """The values of some of the rows, in their order."""
        return [self.values[self.rows.index(row)] for row in rows]


class Measured:
    """The results of the arms of a plan that are there."""

    def __init__(self, steps: Sequence[Step], labels: dict[str, str], *, by_start: bool = False) -> None:
        """`labels`: arm -> label. `by_start`: whether trainings have starts, each a baseline of its own.

        Raises UsageError for a results.json that cannot be read.
        """
        self.labels = labels
        self.by_start = by_start
        self.files = [step.makes for step in steps if step.is_results and step.makes.exists()]
        self._of_arm: dict[tuple[str, str], list[tuple[int, Results]]] = {}
        """Arm and what was measured -> seeds, or starts, and results."""
        self._choices: dict[str, list[Results]] = {}
        for step in steps:
            if step.arm is None or step.measure is None:
                continue
            if step.is_results and step.makes.exists():
                row = step.start if by_start else step.seed
                self._of_arm.setdefault((step.arm, step.on), []).append((row, _load(step.makes)))
            elif (chosen := choice_results(step.makes)).exists():
                self._choices.setdefault(step.arm, []).append(_load(chosen))

    def has(self, arm: str) -> bool:
        """Whether there is any result of the arm."""
        return (arm, "") in self._of_arm

    def aliases(self, arm: str) -> list[str]:
        """What an arm's results on the plan's main data have figures of: the values that `Figure.alias` may have."""
        found: dict[str, None] = {}
        for _, results in self._of_arm.get((arm, ""), ()):
            known = {self.labels[arm]: ALONE, results.baseline: BASELINE}
            for label in (entry.label for entry in results.entries):
                if label in known:
                    found[known[label]] = None
                elif label.startswith(own := f"{self.labels[arm]}, "):
                    found[label.removeprefix(own)] = None
        return list(found)

    def values(self, figure: Figure) -> Values | None:
        """The values of a figure; None if it was not measured."""
        found: dict[str, tuple[int, Entry]] = {}
        for row, results in self._results(figure):
            label = self._label(figure, results)
            for entry in results.entries:
                fits = (entry.label, entry.task, way_of(entry)) == (label, figure.task, figure.way)
                if fits and entry.metric(figure.metric) is not None:
                    found.setdefault(entry.weights_sha256, (row, entry))
        metrics = [(row, one) for row, entry in found.values() if (one := entry.metric(figure.metric)) is not None]
        if not metrics:
            return None
        rows: dict[int, list[list[float]]] = {}
        for row, metric in metrics:
            rows.setdefault(row if self.by_start else len(rows), []).append(metric.values)
        return Values(
            values=[np.mean(some, axis=0).tolist() if len(some) > 1 else some[0] for some in rows.values()],
            rows=list(rows) if self.by_start else [row for row, _ in metrics],
            trainings=len(metrics),
            groups=metrics[0][1].groups,
            trained=self.by_start or not figure.is_untuned,
            notes=[entry.notes for _, entry in found.values()],
        )

    def _results(self, figure: Figure) -> list[tuple[int, Results]]:
        """Those that may have the figure: of an untuned model, also those of other arms that have the same."""
        own = self._of_arm.get((figure.arm, figure.on), [])
        if not figure.is_untuned:
            return own
        untuned = {one.baseline for (arm, _), some in self._of_arm.items() if arm == figure.arm for _, one in some}
        others = [
            one for (arm, on), some in self._of_arm.items() if on == figure.on and arm != figure.arm for one in some
        ]
        return own + [(row, results) for row, results in others if results.baseline in untuned]

    def estimate(
        self, figure: Figure, against: Figure | None = None, *, factor: float = 1.0, above: float = 0.0
    ) -> Difference | None:
        """A figure, or its difference to `factor` times another; None if either was not measured."""
        a = self.values(figure)
        b = self.values(against) if against is not None else None
        if a is None or (against is not None and b is None):
            return None
        rows = [row for row in a.rows if b is None or not self.by_start or row in b.rows]
        if not rows:
            return None
        return difference(
            a.of(rows),
            None if b is None else b.of(rows) if self.by_start else b.values,
            a.groups,
            factor=factor,
            above=above,
            a_is_trained=a.trained,
            b_is_trained=b is not None and b.trained,
            paired=self.by_start,
        )

    def ways(self) -> list[str]:
        """All ways of asking, in the order of the results."""
        entries = (entry for some in self._of_arm.values() for _, results in some for entry in results.entries)
        return list(dict.fromkeys(way_of(entry) for entry in entries if entry.task == "vqa"))

    def best_way(self, arm: str, *, untuned: bool = False) -> str | None:
        """The way of asking with the highest accuracy of the arm, or of its baseline, on validation data.

        None if it was not asked there.
        """
        accuracies: dict[str, list[float]] = {}
        measured = [results for _, results in self._of_arm.get((arm, VALIDATION), ())]
        for results in [*self._choices.get(arm, ()), *measured]:
            label = results.baseline if untuned else self.labels[arm]
            for entry in results.entries:
                metric = entry.metric("accuracy")
                if entry.task == "vqa" and entry.label == label and metric is not None:
                    accuracies.setdefault(way_of(entry), []).append(metric.mean)
        return max(accuracies, key=lambda way: sum(accuracies[way]) / len(accuracies[way]), default=None)

    def _label(self, figure: Figure, results: Results) -> str | None:
        own = self.labels[figure.arm]
        if figure.is_untuned:
            return results.baseline and results.baseline + figure.alias.removeprefix(BASELINE)
        return own if figure.alias == ALONE else f"{own}, {figure.alias}"


def _load(path: Path) -> Results:
    return load_results(path, remedy="Remove it: the same command makes it again.")


def choice_results(folder: Path) -> Path:
    """The results on validation data of a choice that was written to `folder`."""
    return folder.with_name(f"{folder.name}.json")


def way_of(entry: Entry) -> str:
    """The way of asking of an entry, such as "statement + prior"."""
    if entry.asked is not None:
        return entry.asked.way
    asked = re.search(r", asked by ([^,]+)", entry.protocol)
    return asked[1] if asked else _SIMILARITY
