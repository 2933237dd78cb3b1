"""The verdict of a page in words: which model gains where and by how much, what that costs, and what is not shown."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from dialog_eval.tables.findings import Kind, Measure, is_model, measures, models
from dialog_eval.tables.pooling import Cell, Row, Section

MOST_MODELS = 3
"""More models are told by measure, and counted in a title."""
_MOST_SENTENCES = 6
_MOST_FIGURES = 3
_VERBS: dict[Kind, tuple[str, str]] = {"gain": ("gains", "gain"), "loss": ("loses", "lose")}


class Sentence(NamedTuple):
    """A sentence of a verdict: its first words, which a page shows in bold, and the rest."""

    subject: str
    text: str


_NO_HEADLINE = Sentence("No task here has a headline figure", ": see the differences below.")


def title(sections: Sequence[Section]) -> str:
    """What is compared with what, such as "DRAFT and captions only against shapes-clip"."""
    baselines = _baselines(sections)
    told: list[str] = []
    for baseline in [some for some in baselines if some is not None] or baselines:
        compared = models(sections, baseline)
        what = joined(compared) if len(compared) <= MOST_MODELS else f"{len(compared)} models"
        against = "" if baseline is None else f" against {baseline}"
        told.append(f"{what}{against}" if compared else str(baseline))
    return "; ".join(told)


def verdict(sections: Sequence[Section]) -> list[Sentence]:
    """At most six sentences, the most important first."""
    baselines = [baseline for baseline in _baselines(sections) if baseline is not None]
    told: list[Sentence] = []
    for baseline in baselines:
        some = measures(sections, baseline)
        against = f" against {baseline}" if len(baselines) > 1 else ""
        compared = models(sections, baseline)
        if len(compared) <= MOST_MODELS:
            told += [line for label in compared if (line := _of_model(label, some, against))]
        else:
            lines = [line for measure in some if (line := _of_measure(measure, compared, against))]
            told += lines[:_MOST_FIGURES]
        told += _of_blends(some, baseline)
    if not told:
        told = [_NO_HEADLINE] if baselines else _without_baseline(sections)
    return [*told[: _MOST_SENTENCES - 1], *_without_image(sections)]


def joined(names: Sequence[str]) -> str:
    """Names as "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _few(names: Sequence[str]) -> str:
    """The names, or the first few and the number of the others."""
    more = len(names) - _MOST_FIGURES
    return joined([*names[:_MOST_FIGURES], *([f"{more} more"] if more > 0 else [])])


def _baselines(sections: Iterable[Section]) -> list[str | None]:
    return list(dict.fromkeys(section.baseline for section in sections))


def _cells(measure: Measure, keep: Callable[[Row], bool]) -> list[tuple[str, Cell]]:
    return [
        (row.label, row.cells[measure.column])
        for row in measure.section.rows
        if keep(row) and measure.column in row.cells and row.cells[measure.column].difference is not None
    ]


def _size(cell: Cell) -> float:
    return abs(cell.difference.mean) if cell.difference else 0


def _figures(found: Sequence[tuple[Measure, Cell]]) -> str:
    return _few([f"{measure.name} {measure.figure(cell)}" for measure, cell in _ordered(found)])


def _sizes(found: Sequence[tuple[Measure, Cell]]) -> str:
    """The figures after "gains" or "loses", such as "6.2 points [4.9, 7.5] in VQA accuracy"."""
    return _few([f"{measure.size(cell)} in {measure.name}" for measure, cell in _ordered(found)])


def _ordered(found: Sequence[tuple[Measure, Cell]]) -> list[tuple[Measure, Cell]]:
    """The largest difference first."""
    return sorted(found, key=lambda one: -_size(one[1]))


def _of_model(label: str, some: Sequence[Measure], against: str) -> Sentence | None:
    """A sentence about one model; None if nothing of it is compared."""
    found = [(measure, cell) for measure in some for _, cell in _cells(measure, lambda row: row.label == label)]
    clauses = _clauses(found)
    if not clauses:
        return None
    begin = " " if clauses[0].startswith(tuple(verb for verb, _ in _VERBS.values())) else ": "
    return Sentence(f"{label}{against}", f"{begin}{'; '.join(clauses)}.")


def _clauses(found: Sequence[tuple[Measure, Cell]]) -> list[str]:
    by_kind: dict[Kind, list[tuple[Measure, Cell]]] = {}
    for measure, cell in found:
        by_kind.setdefault(measure.kind(cell), []).append((measure, cell))
    told = [f"{verb} {_sizes(by_kind[kind])}" for kind, (verb, _) in _VERBS.items() if kind in by_kind]
    if "unsure" in by_kind:
        told.append(f"not sure: {_figures(by_kind['unsure'])}")
    if "none" in by_kind:
        told.append(f"no difference can be seen in {_figures(by_kind['none'])}")
    return told


def _of_measure(measure: Measure, compared: Sequence[str], against: str) -> Sentence | None:
    """A sentence about one measure of many models; None if nothing is compared."""
    cells = _cells(measure, lambda row: row.label in compared)
    if not cells:
        return None
    by_kind: dict[Kind, list[tuple[str, Cell]]] = {}
    for label, cell in cells:
        by_kind.setdefault(measure.kind(cell), []).append((label, cell))
    clauses: list[str] = []
    for kind, verbs in _VERBS.items():
        if found := by_kind.get(kind):
            label, cell = max(found, key=lambda one: _size(one[1]))
            most = f"most {label}" if len(found) > 1 else label
            clauses.append(
                f"{len(found)} of {len(cells)} models {verbs[len(found) > 1]}, {most} by {measure.size(cell)}"
            )
    if unseen := len(by_kind.get("none", [])) + len(by_kind.get("unsure", [])):
        clauses.append(f"for {'all' if unseen == len(cells) else unseen} no sure difference can be seen")
    return Sentence(f"{measure.name}{against}", f": {'; '.join(clauses)}.")


def _of_blends(some: Sequence[Measure], baseline: str) -> list[Sentence]:
    """A sentence about the blends: the one that gains most without a loss that is seen."""
    blends: dict[str, list[tuple[Measure, Cell]]] = {}
    for measure in some:
        for label, cell in _cells(measure, lambda row: row.blend is not None and is_model(row, baseline)):
            blends.setdefault(label, []).append((measure, cell))
    if not blends:
        return []
    what = f"{len(blends)} blends with {baseline}" if len(blends) > 1 else f"1 blend with {baseline}"
    gains = {
        label: [(m, cell) for m, cell in found if m.kind(cell) == "gain"]
        for label, found in blends.items()
        if all(m.kind(cell) != "loss" for m, cell in found)
    }
    best = max(gains, key=lambda label: max((_size(cell) for _, cell in gains[label]), default=0), default=None)
    if best is None or not gains[best]:
        return [Sentence(f"Of {what}", ", none gains anything without a loss.")]
    text = f', "{best}" gains most without a loss that can be seen: {_figures(gains[best])}.'
    return [Sentence(f"Of {what}", text)]


def _without_image(sections: Sequence[Section]) -> list[Sentence]:
    """A sentence about headline figures that an answer without the image reaches, or none."""
    told: list[str] = []
    for baseline in _baselines(sections):
        for measure in measures(sections, baseline):
            found: dict[str, list[str]] = {}
            for row in measure.section.rows:
                cell = row.cells.get(measure.column)
                if cell is None or row.blend is not None or not is_model(row, None):
                    continue
                ways = measure.unseeing(cell)
                values = {name: value for name, value in ways.items() if value is not None}
                if values:
                    best = max(values, key=values.__getitem__)
                    found.setdefault(f"{best} {measure.number(values[best])}", []).append(_mean(row, cell, measure))
                elif ways:
                    found.setdefault("the model blind", []).append(_mean(row, cell, measure))
            told += [f"{measure.name} of {_few(who)} (against {way})" for way, who in found.items()]
    return [Sentence("Not shown to be above an answer without the image", f": {_few(told)}.")] if told else []


def _mean(row: Row, cell: Cell, measure: Measure) -> str:
    return f"{row.label} {measure.number(cell.estimate.mean)}"


def _without_baseline(sections: Sequence[Section]) -> list[Sentence]:
    """What was measured where nothing is compared."""
    figures = [
        Sentence(row.label, f": {measure.name} {measure.figure(row.cells[measure.column])}.")
        for measure in measures(sections, None)
        for row in measure.section.rows
        if measure.column in row.cells and is_model(row, None)
    ]
    return [Sentence("Nothing is compared", ": measure a baseline too (--baseline)."), *figures[:_MOST_FIGURES]]
