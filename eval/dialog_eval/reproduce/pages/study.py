"""The page of a study: a verdict, goals, claims, and what each arm, way of asking and part gives."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dialog_eval.metrics.significance import Difference, holm
from dialog_eval.reproduce.claims import LEVEL, judge, load_claims, shown
from dialog_eval.reproduce.measured import ALONE, BASELINE, Figure, Measured
from dialog_eval.reproduce.pages.markdown import md, prose, table
from dialog_eval.reproduce.pages.plots import Panel, study_plot
from dialog_eval.reproduce.pages.verdicts import (
    AS_ANSWERS,
    AVERAGED,
    R1,
    claims_lines,
    goal_lines,
    of,
    row_name,
    verdict_lines,
)
from dialog_eval.reproduce.plan import MoreTable, Plan, StudyPage
from dialog_gen.core.files import write_file

_MISSING = "not measured"
_TERMS = """
Ways of asking: *similarity* compares an image with a question and its answer, *statement* with a sentence made of both;
*+ prior* adds how often dialogues answer such a question so, *+ debias* subtracts what an answer scores with other
images, and *+ filter* leaves out answers of another form than the question asks for, which needs no prior. Image R@1:
of 100 captions, how many find their image first; text R@1: of 100 images, how many find a caption of theirs first.
*Averaged*: weights averaged with the untuned ones; *blend 0.9*: text vectors that are untuned to 0.9.
""".strip()


def study_page(plan: Plan, page: StudyPage, measured: Measured, path: Path, details: Path) -> str:
    """The page; its plot is written beside it."""
    best = measured.best_way(page.ablated) or "similarity"
    judged = judge(load_claims(page.claims), measured, best) if page.claims else []
    rows = _rows(plan, measured)
    own_seeds = {name for name, arm in plan.arms.items() if arm.seeds is not None} - {*page.headline}
    main = [row for row in rows if row.arm not in own_seeds or row.alias == BASELINE]
    plot = path.with_suffix(".png")
    curves = _curves(page, measured, best)
    told_by = f"{measured.labels.get(page.ablated, '')}\nVQA, {best} (%)"
    panels = _panels(main, measured, best)
    worth = ", and what dialogues are worth" if curves else ""
    lines = [f"# {prose(plan.title)}", "", *verdict_lines(page, measured, judged, best), ""]
    if panels:
        write_file(plot, study_plot(panels, curves, told_by))
        lines += [f"![What each training gives{worth}]({plot.name})", ""]
    lines += [plan.about.strip(), ""]
    lines += [_TERMS, ""]
    lines += goal_lines(judged) + claims_lines(judged)
    lines += _arms(rows, measured, best) + _ways(main, measured)
    for more in page.tables:
        lines += _more(more, plan, measured, best)
    lines += _ablations(page, plan, measured, best) + _curve_tables(page, plan, measured, best)
    repeated = "the CLIPs that trainings begin with" if measured.by_start else "seeds"
    of_one = (
        "With one seed, a figure and its difference to the untuned CLIP are over images only, and say nothing about "
        "another training; in its difference to a model of several seeds, it is taken to vary as that one does. "
    )
    of_one = "" if measured.by_start else of_one
    note = (
        f"Intervals are of 95 %, over images and over {repeated}; the number of each counts, so that few are no "
        f"certainty. "
        f"{of_one}All figures, with their notes: [{details.name}]({details.name})."
    )
    lines += [note, ""]
    return "\n".join(lines)


def _rows(plan: Plan, measured: Measured) -> list[Figure]:
    """What the tables have a row for: the untuned model, each arm, and its averaged weights."""
    arms = [arm for arm in plan.arms if measured.has(arm)]
    rows = [Figure(arm=arm, alias=BASELINE) for arm in arms[:1]]
    for arm in arms:
        rows += [Figure(arm=arm, alias=alias) for alias in (ALONE, AVERAGED)]
    return [row for row in rows if measured.values(of(row, "retrieval", "image R@1")) is not None]


def _arms(rows: Sequence[Figure], measured: Measured, best: str) -> list[str]:
    columns = [("retrieval", metric, "similarity") for metric in R1]
    columns += [("vqa", "accuracy", way) for way in _shown_ways(best)]
    columns += [("vqa", f"accuracy, {kind}", best) for kind in ("yes/no", "number", "other")]
    head = ["", "seeds", *R1, *(f"VQA, {way}" for way in _shown_ways(best)), "yes/no", "number", "other"]
    body: list[list[str]] = []
    for row in rows:
        values = measured.values(of(row, "retrieval", "image R@1"))
        seeds = str(values.trainings) if values is not None and values.trained else ""
        cells = [_cell(measured, of(row, *column)) for column in columns]
        body.append([md(row_name(row, measured)), seeds, *cells])
    note = (
        f"In percent. The last three columns are parts of the one before, asked by {best}. ‡ marks figures that equal "
        'those of always answering "yes" or of another way that needs no image; † marks those that are not shown to be '
        "above them."
    )
    return ["## What each training gives", "", *table(head, body), "", note, ""] if body else []


def _cell(measured: Measured, figure: Figure) -> str:
    estimate, values = measured.estimate(figure), measured.values(figure)
    if estimate is None or values is None:
        return ""
    return shown(estimate) + mark_of(figure.metric, values.notes)


def mark_of(metric: str, notes: Sequence[Sequence[str]]) -> str:
    """What the notes of all seeds say of a figure without the image: it is above only if that of each seed is."""
    told = [[one for note in some for one in note.removeprefix("without the image: ").split("; ")] for some in notes]
    equal = [any(one.startswith(f"{metric} equals") for one in some) for some in told]
    doubtful = [any(one.startswith(f"{metric} is not shown to be above") for one in some) for some in told]
    return " ‡" if all(equal) else " †" if any(equal + doubtful) else ""


def _shown_ways(best: str) -> list[str]:
    """The ways of asking that are always shown: similarity, and the best with and without its prior."""
    return list(dict.fromkeys(["similarity", best.partition(" + ")[0], best]))


def _ways(rows: Sequence[Figure], measured: Measured) -> list[str]:
    ways = measured.ways()
    body = [
        [md(row_name(row, measured)), *(_cell(measured, of(row, "vqa", "accuracy", way)) for way in ways)]
        for row in rows
    ]
    if not body:
        return []
    return [
        "## Ways of asking",
        "",
        *table(["VQA accuracy", *ways], body),
        "",
        "In percent. Weights of prior and debias are chosen for each model on the dialogues of validation images.",
        "",
    ]


def _more(more: MoreTable, plan: Plan, measured: Measured, best: str) -> list[str]:
    """A table of the plan's own."""

    def figures(row: Figure) -> list[Figure]:
        return [
            replace(of(row, one.task, one.metric, best if one.way == "best" else one.way), on=one.on)
            for one in more.columns
        ]

    asked = more.arms or list(plan.arms)
    arms = [arm for arm in asked if any(map(measured.values, figures(Figure(arm=arm, alias=BASELINE))))]
    rows = [Figure(arm=arm, alias=BASELINE) for arm in arms[:1]]
    rows += [Figure(arm=arm, alias=alias) for arm in arms for alias in (ALONE, AVERAGED, AS_ANSWERS)]
    body = [
        [md(row_name(row, measured)), *(_cell(measured, figure) for figure in found)]
        for row in rows
        if any(map(measured.values, found := figures(row)))
    ]
    head = ["", *(one.name.replace("best way", best) for one in more.columns)]
    notes = [more.note, ""] if more.note else []
    return [f"## {more.title}", "", *table(head, body), "", *notes] if body else []


def _ablations(page: StudyPage, plan: Plan, measured: Measured, best: str) -> list[str]:
    arms = [arm for arm in page.ablations if measured.has(arm)]
    if not arms:
        return []
    # What was not taught to be asked in the best way may answer as well in the other one.
    _, plus, prior = best.partition(" + ")
    ways = ["similarity", *([f"similarity + {prior}"] if plus else []), *_shown_ways(best)]
    ways = list(dict.fromkeys(ways))
    columns = [
        *(("vqa", "accuracy", way) for way in ways),
        *(("retrieval", one, "similarity") for one in R1),
    ]
    full = Figure(arm=page.ablated)
    changes = [
        [measured.estimate(of(Figure(arm=arm), *column), of(full, *column)) for column in columns] for arm in arms
    ]
    adjusted = iter(holm([one.p for some in changes for one in some if one is not None]))
    body = [
        [
            f"{md(measured.labels[page.ablated])}, all parts",
            *(_cell(measured, of(full, *column)) for column in columns),
        ]
    ]
    for arm, some in zip(arms, changes, strict=True):
        body.append(
            [md(plan.arms[arm].label), *(_change(one, next(adjusted) if one is not None else 1.0) for one in some)]
        )
    head = ["", *(f"VQA, {way}" for way in ways), *R1]
    several = (values := measured.values(of(full, *columns[0]))) is not None and values.trainings > 1
    note = (
        "First row in percent, others as differences to it in points; bold where Holm's p-value, over this table, is "
        f"below {LEVEL:g}."
    )
    note += " What has one training is taken to vary as the first row's do." if several else ""
    return ["## Parts left out or changed, one at a time", "", *table(head, body), "", note, ""]


def _change(change: Difference | None, p: float) -> str:
    if change is None:
        return _MISSING
    text = shown(change, "+")
    return f"**{text}**" if p < LEVEL else text


def _panels(rows: Sequence[Figure], measured: Measured, best: str) -> list[Panel]:
    columns = {f"VQA, {way} (%)": ("vqa", "accuracy", way) for way in reversed(_shown_ways(best))}
    columns |= {f"{metric} (%)": ("retrieval", metric, "similarity") for metric in R1}
    panels = [
        Panel(
            title,
            column[0],
            {
                row_name(row, measured): estimate
                for row in rows
                if (estimate := measured.estimate(of(row, *column))) is not None
            },
        )
        for title, column in columns.items()
    ]
    return [panel for panel in panels if panel.estimates]


def _curves(page: StudyPage, measured: Measured, best: str) -> dict[str, list[tuple[float, Difference]]]:
    """Name of the x axis -> its points."""
    return {
        title: [
            (x, estimate)
            for arm, x in sorted(arms.items(), key=lambda item: item[1])
            if (estimate := measured.estimate(of(Figure(arm=arm), "vqa", "accuracy", best))) is not None
        ]
        for title, arms in page.curves.items()
    }


def _curve_tables(page: StudyPage, plan: Plan, measured: Measured, best: str) -> list[str]:
    lines: list[str] = []
    for title, arms in page.curves.items():
        body = [
            [
                f"{x:g}",
                _cell(measured, of(Figure(arm=arm), "vqa", "accuracy")),
                _cell(measured, of(Figure(arm=arm), "vqa", "accuracy", best)),
                *(_cell(measured, of(Figure(arm=arm), "retrieval", metric)) for metric in R1),
            ]
            for arm, x in arms.items()
            if measured.has(arm)
        ]
        if body:
            lines += [f"## Over {title}", "", *table([title, "VQA, similarity", f"VQA, {best}", *R1], body), ""]
    return lines
