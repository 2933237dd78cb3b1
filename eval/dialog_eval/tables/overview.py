"""The first table of a page: one row per system, with the one or two most important measures of each task."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dialog_eval.tables.findings import is_model
from dialog_eval.tables.pooling import Column, Comparison, Row, Section
from dialog_eval.tasks.base import presentation_of

_Key = tuple[str, str, str]
"""Task, dataset, protocol"""


def overview(sections: Sequence[Section]) -> list[Comparison]:
    """The systems of each baseline, all with the same columns; empty if there is only one task.

    Baselines, rows and columns are in order of first appearance. A result without a baseline joins the row with its
    label, if there is one. Control runs and spreads are shown only in the sections. The last comparison has the
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
            if not cells or not is_model(row, None):
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
    """(Task, dataset, protocol) -> measure -> column name; to equal names, dataset and protocol are added once."""
    names: dict[_Key, dict[str, str]] = {}
    for section in sections:
        measured = {column.name for column in section.columns}
        told = {
            measure: name.format(protocol=section.protocol)
            for measure, name in presentation_of(section.task).headlines.items()
            if measure in measured
        }
        if told:
            names[_key(section)] = told
    times = Counter(name for own in names.values() for name in own.values())

    def told_apart(name: str, key: _Key) -> str:
        _, dataset, protocol = key
        return ", ".join([name, dataset, *([protocol] if protocol not in name else [])]) if times[name] > 1 else name

    return {key: {measure: told_apart(name, key) for measure, name in own.items()} for key, own in names.items()}
