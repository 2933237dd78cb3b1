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
    lines = told(page.headline) or told([page.ablated])
    told_of: list[str] = []
    goals = [one.verdict for one in judged if one.claim.goal]
    claims = [one.verdict for one in judged if not one.claim.goal]
    if goals:
        unmeasured = f", {open_goals} cannot be seen" if (open_goals := goals.count("cannot be seen here")) else ""
        told_of.append(f"Goals: {goals.count('holds')} of {len(goals)} are reached{unmeasured}.")
    if claims:
        kinds: tuple[Verdict, ...] = ("holds", "does not", "cannot be seen here")
        held, not_held, unseen = (claims.count(kind) for kind in kinds)
        holds, does = ("holds" if held == 1 else "hold"), ("does" if not_held == 1 else "do")
        settled = [one for one in judged if not one.claim.goal and one.verdict != "cannot be seen here"]
        alone = sum(one.one_seed for one in settled)
        note = f" Of these verdicts, {alone} {'rests' if alone == 1 else 'rest'} on one training." if alone else ""
        told_of.append(
            f"Claims of the sources: {held} {holds}, {not_held} {does} not, {unseen} cannot be seen here.{note}"
        )
    lines += [" ".join(told_of)] if told_of else []
    return [line for text in lines for line in (text, "")][:-1]


def _headline(arm: str, page: StudyPage, measured: Measured, best: str) -> str:
    """What the arm answers and retrieves beside the untuned model; "" if unknown."""
    base, ours = Figure(arm=arm, alias=BASELINE), Figure(arm=arm)
    answers, untuned = (measured.estimate(of(row, "vqa", "accuracy", best)) for row in (ours, base))
    if answers is None or untuned is None:
        return ""
    where = page.retrieval_on if measured.values(replace(of(ours, "retrieval", R1[0]), on=page.retrieval_on)) else ""
    recalls = [
        f"{metric} {shown(change, '+')}"
        for metric in R1
        if (change := measured.estimate(*(replace(of(row, "retrieval", metric), on=where) for row in (ours, base))))
    ]
    gain = measured.estimate(of(ours, "vqa", "accuracy", best), of(base, "vqa", "accuracy", best))
    doubt = ", which does not show that it is better" if gain is not None and gain.low <= 0 else ""
    return (
        f"**{md(row_name(ours, measured))}: answers {shown(answers)} % of the questions, the untuned CLIP "
        f"{shown(untuned)} %**{doubt}; both asked by {best}, the best way on validation data. Against the untuned "
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
    return ["## Goals", "", *table(["goal", "shown by", "figure", ""], rows, text_columns=4), ""] if rows else []


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
        f"p-value below {LEVEL:g} after Holm's correction for all tests of these tables."
    )
    return ["## What the sources claim", "", *table(head, rows, text_columns=5), "", note, ""]
