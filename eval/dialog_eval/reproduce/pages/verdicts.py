"""What a study says in words: its verdict, its goals and the claims of the sources."""

from collections.abc import Sequence
from dataclasses import replace

from dialog_eval.reproduce.claims import LEVEL, Judged, Verdict, shown
from dialog_eval.reproduce.measured import ALONE, BASELINE, Figure, Measured
from dialog_eval.reproduce.pages.markdown import md, prose, table
from dialog_eval.reproduce.plan import StudyPage

AVERAGED, AS_ANSWERS = "averaged", "as answers"
R1 = ("image R@1", "text R@1")


def of(row: Figure, task: str, metric: str, way: str = "similarity") -> Figure:
    """A figure of a row."""
    return Figure(arm=row.arm, alias=row.alias, task=task, metric=metric, way=way)


def row_name(row: Figure, measured: Measured) -> str:
    """What a row is called."""
    if row.alias == BASELINE:
        return "untuned"
    return measured.labels[row.arm] + ("" if row.alias == ALONE else f", {row.alias}")


def verdict_lines(page: StudyPage, measured: Measured, judged: Sequence[Judged], best: str) -> list[str]:
    """A few lines for those who read nothing else."""

    def told(arms: Sequence[str]) -> list[str]:
        return [line for arm in arms if (line := _headline(arm, page, measured, best))]

    # Until the headline's arms are measured, it is the one that ablations are compared with.
    lines = [prose(page.scope)] if page.scope else []
    lines += told(page.headline) or told([page.ablated])
    told_of: list[str] = []
    goals = [one.verdict for one in judged if one.claim.goal]
    if goals:
        unmeasured = f", {open_goals} cannot be seen" if (open_goals := goals.count("cannot be seen here")) else ""
        told_of.append(f"Goals: {goals.count('holds')} of {len(goals)} are reached{unmeasured}.")
    claims = [one for one in judged if not one.claim.goal]
    for name, own in (("Claims of the sources", False), ("Our own", True)):
        some: list[Verdict] = [one.verdict for one in claims if one.claim.is_own == own]
        if some:
            told_of.append(f"{name}: {_counted(some)}.")
    if alone := sum(one.one_seed for one in claims if one.verdict != "cannot be seen here"):
        told_of.append(f"Of these verdicts, {alone} {'rests' if alone == 1 else 'rest'} on one training.")
    lines += [" ".join(told_of)] if told_of else []
    return [line for text in lines for line in (text, "")][:-1]


def _counted(verdicts: Sequence[Verdict]) -> str:
    kinds: tuple[Verdict, ...] = ("holds", "does not", "cannot be seen here")
    held, not_held, unseen = (verdicts.count(kind) for kind in kinds)
    holds, does = ("holds" if held == 1 else "hold"), ("does" if not_held == 1 else "do")
    return f"{held} {holds}, {not_held} {does} not, {unseen} cannot be seen here"


def _headline(arm: str, page: StudyPage, measured: Measured, best: str) -> str:
    """What the arm answers and retrieves beside the untuned model; "" if unknown.

    Each model is asked in the way that validation data choose for it; one that was not asked there, in `best`.
    """
    base, ours = Figure(arm=arm, alias=BASELINE), Figure(arm=arm)
    chosen = measured.best_way(arm)
    own = chosen or best
    of_base = measured.best_way(arm, untuned=True) or measured.best_way(page.ablated, untuned=True) or best
    asked, asked_base = of(ours, "vqa", "accuracy", own), of(base, "vqa", "accuracy", of_base)
    answers, untuned = measured.estimate(asked), measured.estimate(asked_base)
    if answers is None or untuned is None:
        return ""
    where = page.retrieval_on if measured.values(replace(of(ours, "retrieval", R1[0]), on=page.retrieval_on)) else ""
    recalls = [
        f"{metric} {shown(change, '+')}"
        for metric in R1
        if (change := measured.estimate(*(replace(of(row, "retrieval", metric), on=where) for row in (ours, base))))
    ]
    gain = measured.estimate(asked, asked_base)
    doubt = ", which does not show that it is better" if gain is not None and gain.low <= 0 else ""
    how = f"both asked by {own}" if own == of_base else f"asked by {own} and by {of_base}"
    ways = "the best way" if own == of_base else "the best ways"
    where_chosen = f", {ways} on validation data" if chosen else ""
    return (
        f"**{md(row_name(ours, measured))}: answers {shown(answers)} % of the questions, the untuned CLIP "
        f"{shown(untuned)} %**{doubt}; {how}{where_chosen}. Against the untuned "
        f"CLIP: {', '.join(recalls)} points."
    )


def goal_lines(judged: Sequence[Judged]) -> list[str]:
    """The table of goals."""
    rows = [
        [
            prose(one.claim.claim),
            prose(one.claim.shows),
            prose("; ".join(one.figures)),
            {"holds": "**reached**", "does not": "missed", "cannot be seen here": "cannot be seen"}[one.verdict],
        ]
        for one in judged
        if one.claim.goal
    ]
    note = (
        "In percentage points. Goals about answers are decided by the mean, those about retrieval by a p-value below "
        f"{LEVEL:g} after Holm's correction for all of these."
    )
    head = ["goal", "shown by", "figure", ""]
    return ["## Goals", "", *table(head, rows, text_columns=4), "", note, ""] if rows else []


def claims_lines(judged: Sequence[Judged]) -> list[str]:
    """The table of claims."""
    rows = [
        [
            prose(one.claim.claim),
            prose(one.claim.source),
            prose(one.claim.shows),
            prose("; ".join(one.figures)),
            one.verdict if one.verdict == "cannot be seen here" else f"**{one.verdict}**",
        ]
        for one in judged
        if not one.claim.goal
    ]
    if not rows:
        return []
    head = ["claim", "source", "shown by", "figure", "verdict"]
    note = (
        "Differences in percentage points. A claim holds, or does not, if each test of it, or one against it, has a "
        f"p-value below {LEVEL:g} after Holm's correction for all tests of this table."
    )
    return ["## Claims", "", *table(head, rows, text_columns=5), "", note, ""]
