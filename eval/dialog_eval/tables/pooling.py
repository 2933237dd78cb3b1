"""Prepares what a table shows: entries of several results.json, pooled over repetitions, paired with the baseline.

Entries with the same label, task, dataset and protocol are repetitions, such as seeds. An item's value is its mean over
the repetitions, and intervals are bootstrapped from these means, by image. An interval describes how much a value would
vary with other images; the spread, which is shown separately, how much it varies with another seed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dialog_eval.metrics.intervals import Floats, bootstrap_interval, paired_bootstrap
from dialog_eval.metrics.significance import difference, holm
from dialog_eval.results import Entry, Examples, Metric, Results, load_results
from dialog_gen.core.errors import UsageError

_Key = tuple[str | None, str, str, str]
"""Baseline, task, dataset, protocol"""
_Sourced = tuple[Entry, Path]

MOST_P = 0.05
"""A difference holds if its adjusted p-value is below this."""
BLIND = ", blind"
"""The end of the label of a model that sees the mean image in place of every image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean or a difference of two means, with its 95 % interval. Means are from 0 to 1, differences from -1 to 1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row's value of one measure."""

    estimate: Estimate
    difference: Estimate | None
    """Paired difference to the baseline; None for the baseline itself, and if the baseline was not measured"""
    repetitions: int
    """Number of different weights that were measured"""
    spread: float | None
    """Standard deviation (n - 1) of their means; None for one repetition"""
    p_value: float | None = None
    """Of the difference, over images and repetitions, adjusted for all differences of the sections (Holm)"""
    sight: Estimate | None = None
    """Paired difference to the same model without the images; None if that was not measured"""
    counts: tuple[int, int] | None = None
    """How many items are better and how many are worse than the baseline's, on average over repetitions"""

    @property
    def holds(self) -> bool:
        """Whether the difference holds after the correction for all differences of the page."""
        return self.p_value is not None and self.p_value < MOST_P


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measure; all its cells refer to the same items."""

    name: str
    items: int
    """0 if only references have a value"""
    images: int | None
    """None if the items are independent"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The values of one label; `cells` maps the names of measured columns to their cells."""

    label: str
    blend: str | None
    beta: float | None
    noise: float | None
    """Standard deviation of the noise in text-only training"""
    cells: dict[str, Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows that share a baseline, or have none."""

    baseline: str | None
    """The label of the first row; None if there is no baseline or it was not measured here"""
    columns: list[Column]
    rows: list[Row]
    references: dict[str, dict[str, float]]
    """Name -> measure -> value (0 to 1) that needs no model"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section(Comparison):
    """Comparable results: one task, dataset and protocol."""

    task: str
    dataset: str
    protocol: str
    notes: dict[str, list[str]]
    """Label -> weights of the way of asking, and what to know about figures"""
    examples: dict[str, Examples]
    """Label -> items on which the model and the baseline differ"""


def pool(files: Sequence[Path]) -> list[Section]:
    """Reads results.json files and pools them into sections: see `pool_results`."""
    return pool_results([(path, load_results(path)) for path in files])


def pool_results(read: Sequence[tuple[Path, Results]]) -> list[Section]:
    """Pools results, each with the file it was read from, into sections.

    Sections, rows and columns are in order of first appearance, except that the baseline comes first. The same weights
    measured in several files are one repetition, with the mean of its measurements. Files with different baselines form
    separate sections; a file without a baseline uses the only baseline of the others.

    Raises UsageError for files that are not results or have no entries, for a baseline that no file measured, for a
    label that is used for different blends, and for items or references of one dataset that differ.
    """
    loaded = _with_one_baseline(read)
    entries: dict[_Key, list[_Sourced]] = {}
    for path, results in loaded:
        for entry in results.entries:
            key = (results.baseline, entry.task, entry.dataset, entry.protocol)
            entries.setdefault(key, []).append((entry, path))
    if not entries:
        raise UsageError(
            f"{', '.join(str(path) for path, _ in read) or 'No file'}: no entries to show. Name files of dialog-eval."
        )
    measured = {(key[0], entry.label) for key, some in entries.items() for entry, _ in some}
    for baseline in dict.fromkeys(results.baseline for _, results in loaded):
        if baseline is not None and (baseline, baseline) not in measured:
            raise UsageError(
                f"The baseline {baseline!r} has no entry in these files: add the results.json that has it."
            )
    return _corrected([_section(key, some, _references(key, loaded)) for key, some in entries.items()])


def _corrected(sections: Sequence[Section]) -> list[Section]:
    """Adjusts the p-values of all cells for one another."""
    raw = [c.p_value for section in sections for row in section.rows for c in row.cells.values()]
    adjusted = iter(holm([p for p in raw if p is not None]))

    def of(cell: Cell) -> Cell:
        return cell if cell.p_value is None else replace(cell, p_value=next(adjusted))

    return [
        replace(
            section,
            rows=[replace(row, cells={name: of(cell) for name, cell in row.cells.items()}) for row in section.rows],
        )
        for section in sections
    ]


def _with_one_baseline(loaded: Sequence[tuple[Path, Results]]) -> list[tuple[Path, Results]]:
    """The results; if they name only one baseline, it becomes the baseline of all."""
    named = {results.baseline for _, results in loaded} - {None}
    if len(named) > 1:
        return list(loaded)
    return [(path, results.model_copy(update={"baseline": next(iter(named), None)})) for path, results in loaded]


def _references(key: _Key, loaded: Iterable[tuple[Path, Results]]) -> dict[str, dict[str, float]]:
    """The references of the files that have entries of this section; a reference itself has no protocol."""
    _, task, dataset, protocol = key
    found: dict[str, dict[str, float]] = {}
    for path, results in loaded:
        if not any((results.baseline, entry.task, entry.dataset, entry.protocol) == key for entry in results.entries):
            continue
        for reference in results.references:
            if (reference.task, reference.dataset) == (task, dataset):
                value = found.setdefault(reference.name, {}).setdefault(reference.metric, reference.value)
                if abs(value - reference.value) > 1e-9:
                    raise UsageError(
                        f"{path}: {reference.metric!r} of {reference.name!r} on {dataset} ({protocol}) is "
                        f"{reference.value:.4f}, in a file before it {value:.4f}. Make a table for each."
                    )
    return found


def _section(key: _Key, entries: list[_Sourced], references: dict[str, dict[str, float]]) -> Section:
    baseline, task, dataset, protocol = key
    by_label: dict[str, list[_Sourced]] = {}
    for sourced in sorted(entries, key=lambda sourced: sourced[0].label != baseline):
        by_label.setdefault(sourced[0].label, []).append(sourced)
    measures = _measures(entries)
    columns = [
        Column(name=name, items=len(metric.values), images=None if metric.groups is None else len(set(metric.groups)))
        for name, metric in measures.items()
    ]
    alone = {measure: None for figures in references.values() for measure in figures if measure not in measures}
    columns += [Column(name=name, items=0, images=None) for name in alone]
    measured = {
        (label, name): values
        for label, same in by_label.items()
        for name in measures
        if (values := _repetitions(same, name)) is not None
    }
    rows: list[Row] = []
    for label, same in by_label.items():
        blend, beta, noise = _settings(label, same)
        cells = {
            name: _cell(
                measured[label, name],
                measured.get((baseline, name)) if baseline is not None and label != baseline else None,
                measured.get((label + BLIND, name)),
                metric.groups,
            )
            for name, metric in measures.items()
            if (label, name) in measured
        }
        rows.append(Row(label=label, blend=blend, beta=beta, noise=noise, cells=cells))
    return Section(
        task=task,
        dataset=dataset,
        protocol=protocol,
        baseline=baseline if baseline in by_label else None,
        columns=columns,
        rows=rows,
        references=references,
        notes=_notes(by_label),
        examples={
            label: entry.examples
            for label, same in by_label.items()
            for entry, _ in same[:1]
            if entry.examples is not None and entry.examples.baseline == baseline
        },
    )


def _notes(by_label: Mapping[str, Sequence[_Sourced]]) -> dict[str, list[str]]:
    """The notes of all entries; what is not noted of all repetitions says of how many it is."""
    notes: dict[str, list[str]] = {}
    for label, same in by_label.items():
        told = Counter(note for entry, _ in same for note in entry.all_notes())
        for note, count in told.items():
            of = f" ({count} of {len(same)} repetitions)" if count < len(same) else ""
            notes.setdefault(label, []).append(note + of)
    return notes


def _measures(entries: Iterable[_Sourced]) -> dict[str, Metric]:
    """Measure -> its first metric. Raises UsageError if other metrics of the measure have different items."""
    first: dict[str, tuple[Metric, Path]] = {}
    for entry, path in entries:
        for metric in entry.metrics:
            wanted, source = first.setdefault(metric.name, (metric, path))
            told = f"{path}: {metric.name!r} of {entry.label!r} on {entry.dataset}"
            if len(metric.values) != len(wanted.values):
                raise UsageError(
                    f"{told} has {len(metric.values)} items, in {source} it has {len(wanted.values)}: "
                    "they cannot be compared item by item. Evaluate both on the same items."
                )
            if metric.groups != wanted.groups:
                raise UsageError(
                    f"{told} groups its items by other images than {source} does: "
                    "they cannot be compared item by item. Evaluate both on the same items."
                )
    return {name: metric for name, (metric, _) in first.items()}


def _settings(label: str, same: Iterable[_Sourced]) -> tuple[str | None, float | None, float | None]:
    """Kind of blend, beta and noise of a label. Raises UsageError if its repetitions differ in them."""
    kinds = {(entry.blend, entry.beta): path for entry, path in same}
    if len(kinds) > 1:
        told = ", ".join(f"{blend or 'no'} blend, beta {beta} in {path}" for (blend, beta), path in kinds.items())
        raise UsageError(f"{label!r} stands for different blends: {told}. Give each its own label.")
    noises = {entry.noise: path for entry, path in same}
    if len(noises) > 1:
        told = ", ".join(f"{noise} in {path}" for noise, path in noises.items())
        raise UsageError(f"{label!r} stands for trainings with different noise: {told}. Give each its own label.")
    return *next(iter(kinds)), next(iter(noises))


def _repetitions(same: Iterable[_Sourced], name: str) -> Floats | None:
    """The values (repetitions, items), one repetition per distinct weights; None if the measure is missing."""
    by_weights: dict[str, list[list[float]]] = {}
    for entry, _ in same:
        metric = entry.metric(name)
        if metric is not None:
            by_weights.setdefault(entry.weights_sha256, []).append(metric.values)
    return np.array([np.mean(values, axis=0) for values in by_weights.values()]) if by_weights else None


def _cell(values: Floats, baseline: Floats | None, blind: Floats | None, groups: list[int] | None) -> Cell:
    """Computes a cell from `values`, `baseline` and `blind`, each (repetitions, items)."""
    means = values.mean(axis=0)
    mean, low, high = bootstrap_interval(means, groups=groups)
    return Cell(
        estimate=Estimate(mean=mean, low=low, high=high),
        difference=None if baseline is None else _difference(means, baseline, groups),
        repetitions=len(values),
        spread=float(values.mean(axis=1).std(ddof=1)) if len(values) > 1 else None,
        p_value=None if baseline is None else difference(values, baseline, groups, b_is_trained=len(baseline) > 1).p,
        sight=None if blind is None else _difference(means, blind, groups),
        counts=None if baseline is None else _counts(means - baseline.mean(axis=0)),
    )


def _difference(means: Floats, other: Floats, groups: list[int] | None) -> Estimate:
    apart, low, high = paired_bootstrap(means, other.mean(axis=0), groups=groups)
    return Estimate(mean=apart, low=low, high=high)


def _counts(differences: Floats) -> tuple[int, int]:
    return int((differences > 0).sum()), int((differences < 0).sum())
