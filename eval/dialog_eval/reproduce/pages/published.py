"""The page of a published table: its figures beside ours."""

from dataclasses import replace
from pathlib import Path

from dialog_eval.metrics.significance import Difference
from dialog_eval.reproduce.claims import shown
from dialog_eval.reproduce.measured import Figure, Measured
from dialog_eval.reproduce.pages.markdown import md, prose, table
from dialog_eval.reproduce.plan import ColumnPlan, Plan, RowPlan, TablePage

_SCALES = {
    "shapes": "Ours: the same steps in the embedded world, where one small CLIP stands for every published one. Its "
    "figures are of other images and questions, so compare the changes, not the levels.",
    "full": "Ours: the published models, data and settings.",
}


def published_page(plan: Plan, page: TablePage, scale: str, measured: Measured, details: Path) -> str:
    """The page, with a verdict: in how many figures the change to the published baseline has the same direction."""
    ours = {
        (place, column.name): measured.estimate(_figure(row, column))
        for place, row in enumerate(page.rows)
        for column in page.columns
    }
    changes = _changes(page, measured)
    lines = [f"# {prose(plan.title)}", "", _verdict(changes), "", plan.about.strip(), "", _SCALES.get(scale, ""), ""]
    head = ["", "", *(md(column.name) for column in page.columns)]
    rows: list[list[str]] = []
    for place, row in enumerate(page.rows):
        figures = [ours[place, column.name] for column in page.columns]
        rows.append([md(row.label), "published", *(_published(value) for value in row.published)])
        rows.append(["", "ours", *("not measured" if one is None else shown(one) for one in figures)])
        apart = [changes.get((place, column.name)) for column in page.columns]
        if any(apart):
            rows.append(["", "published change", *("" if one is None else f"{one[0]:+.1f}" for one in apart)])
            rows.append(["", "our change", *("" if one is None else shown(one[1], "+") for one in apart)])
    lines += [*table(head, rows, text_columns=2), ""]
    note = (
        "In percent; in brackets 95 % intervals over images, and over seeds if there are several. Changes are to the "
        f"nearest untuned model above. All figures: [{details.name}]({details.name})."
    )
    lines += [note, ""]
    return "\n".join(lines)


def unknown_rows(page: TablePage, measured: Measured) -> list[str]:
    """The rows whose alias is of nothing that their arm's results have, each in a line."""
    found: list[str] = []
    for row in page.rows:
        there = measured.aliases(row.arm)
        if there and row.alias not in there:
            names = ", ".join(map(repr, there))
            found.append(f"row {row.label!r}: the results of {row.arm!r} have no {row.alias!r}, they have {names}.")
    return found


def _published(value: float) -> str:
    """As it was published, with one decimal or two."""
    text = f"{value:g}"
    return text if "." in text else f"{text}.0"


def _figure(row: RowPlan, column: ColumnPlan) -> Figure:
    return Figure(arm=row.arm, alias=row.alias, task=column.task, metric=column.metric, way=column.way, on=column.on)


def _changes(page: TablePage, measured: Measured) -> dict[tuple[int, str], tuple[float, Difference]]:
    """Row and column -> published change and ours, to the nearest baseline above."""
    found: dict[tuple[int, str], tuple[float, Difference]] = {}
    base: RowPlan | None = None
    for place, row in enumerate(page.rows):
        if row.alias == "baseline":
            base = row
            continue
        if base is None:
            continue
        for number, column in enumerate(page.columns):
            # Both of one results file: the baseline that the arm itself was compared with.
            figure = replace(_figure(row, column), alias="baseline")
            change = measured.estimate(_figure(row, column), figure)
            if change is not None:
                found[place, column.name] = row.published[number] - base.published[number], change
    return found


def _verdict(changes: dict[tuple[int, str], tuple[float, Difference]]) -> str:
    same = [1 for published, ours in changes.values() if published * ours.mean > 0]
    against = [1 for published, ours in changes.values() if (ours.low > 0 > published) or (ours.high < 0 < published)]
    if not changes:
        return "**No change to a baseline was measured.**"
    return (
        f"**{len(same)} of {len(changes)} changes have the direction of the published ones; {len(against)} go the "
        "other way by more than their interval.**"
    )
