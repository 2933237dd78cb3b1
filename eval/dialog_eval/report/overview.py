"""The beginning of a page of tables: a row a system, with the measure or two that tell most of each task."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dialog_eval.report.pooling import Column, Comparison, Row, Section
from dialog_eval.results import Task

# Task -> measure -> how its column is called.
_HEADLINES: dict[Task, dict[str, str]] = {
    "retrieval": {"image R@1": "image R@1", "text R@1": "text R@1"},
    "vqa": {"accuracy": "VQA, {protocol}"},
    "classification": {"top-1": "classification, top-1"},
    "captioning": {"BLEU": "captioning, BLEU"},
    "entailment": {"accuracy": "entailment"},
}
_Key = tuple[Task, str, str]
# What vectors other than an image's own gave.
_CONTROLS = (", blind", ", from captions")


def overview(sections: Sequence[Section]) -> list[Comparison]:
    """The systems of each baseline, all with the same columns; none where there is but one task to look at.

    Baselines, rows and columns stand in order of first appearance; what was measured without a baseline goes into the
    row of its label, where there is one. Controls and spreads are left to the sections, and the last one has the
    references.
    """
    names = _column_names(sections)
    if len(names) < 2:
        return []
    columns = [Column(name=name, items=0, images=None) for own in names.values() for name in own.values()]
    rows: dict[str | None, dict[str, Row]] = {}
    references: dict[str, dict[str, float]] = {}
    for section in sorted(sections, key=lambda section: section.baseline is None):
        own = names.get(_key(section), {})
        for row in section.rows:
            cells = {name: replace(row.cells[told], spread=None) for told, name in own.items() if told in row.cells}
            if not cells or row.label.endswith(_CONTROLS):
                continue
            homes = [baseline for baseline, some in rows.items() if section.baseline is None and row.label in some]
            group = rows.setdefault(homes[0] if homes else section.baseline, {})
            known = group.setdefault(row.label, replace(row, cells={}))
            group[row.label] = replace(known, cells=known.cells | cells)
        for name, figures in section.references.items():
            if told := {own[measure]: value for measure, value in figures.items() if measure in own}:
                references.setdefault(name, {}).update(told)
    last = list(rows)[-1]
    return [
        Comparison(
            baseline=baseline,
            columns=columns,
            rows=list(some.values()),
            references=references if baseline == last else {},
        )
        for baseline, some in rows.items()
    ]


def _key(section: Section) -> _Key:
    return section.task, section.dataset, section.protocol


def _column_names(sections: Sequence[Section]) -> dict[_Key, dict[str, str]]:
    """Task, dataset and protocol -> measure -> name; where two would be called the same, with dataset and protocol."""
    names: dict[_Key, dict[str, str]] = {}
    for section in sections:
        measured = {column.name for column in section.columns}
        told = {
            measure: name.format(protocol=section.protocol)
            for measure, name in _HEADLINES[section.task].items()
            if measure in measured
        }
        if told:
            names[_key(section)] = told
    times = Counter(name for own in names.values() for name in own.values())
    return {
        key: {measure: name if times[name] == 1 else f"{name}, {key[1]}, {key[2]}" for measure, name in own.items()}
        for key, own in names.items()
    }
