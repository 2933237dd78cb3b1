"""Runs a plan: says what it costs, runs its steps and writes its page."""

import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from dialog_eval.reproduce.cost import Cost, cost_line, costs
from dialog_eval.reproduce.pages import check_page, write_page
from dialog_eval.reproduce.plan import load_plan
from dialog_eval.reproduce.run import Outcome, Records, run_steps
from dialog_eval.reproduce.steps import Step, plan_steps
from dialog_gen.core.errors import FailedCheckError, UsageError, check_at_least


def reproduce(
    name: str,
    *,
    scale: str = "shapes",
    out: str | PathLike[str] | None = None,
    seeds: int | None = None,
    jobs: int = 1,
    page: str | PathLike[str] | None = None,
    dry_run: bool = False,
    on_plan: Callable[[list[Step], list[Cost], str], None] = lambda steps, costs, line: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Path | None:
    """Runs what a plan names, and writes its page.

    Args:
        name: A shipped plan, such as "results" or "table-5-1", or the user's .toml file.
        scale: "shapes", the embedded world, or "full", with the published models and data.
        out: The folder for everything. None: reproduce-out/SCALE.
        seeds: Seeds of each main arm. None: the plan's number.
        jobs: Number of steps that run at a time.
        page: The page to write, .md. None: OUT/NAME.md.
        dry_run: Run nothing.
        on_plan: Called before anything starts, with the steps, their costs and the costs in one line.
        tell: Called with a line at the start and end of each step.

    Returns:
        The page; None after a dry run.

    Raises:
        UsageError: For an unknown plan or scale, for an `out` or a `page` that cannot be written, and if `out` has
            outputs of other command lines or another run in it.
        FailedCheckError: If steps failed; the page is written from the others.
        DialogGenError: If the disk refuses a write.
    """
    check_at_least("--jobs", jobs, 1)
    plan = load_plan(name, scale)
    folder = Path(out) if out is not None else Path("reproduce-out") / scale
    target = Path(page) if page is not None else folder / f"{plan.name}.md"
    _check_places(folder, target)
    steps = plan_steps(plan, folder, seeds)
    check_page(plan, scale)
    records = Records(folder)
    records.check(steps)
    known = costs(steps, records)
    on_plan(steps, known, cost_line(known[-1]))
    if dry_run:
        return None
    outcome = run_steps(steps, folder, jobs=jobs, tell=tell)
    write_page(plan, scale, steps, folder, target, tell=tell)
    if outcome.failed:
        raise FailedCheckError(_failures(outcome, records, target))
    return target


def _check_places(out: Path, page: Path) -> None:
    """Raises UsageError if the outputs or the page cannot be written; makes nothing itself, for dry runs."""
    for flag, given, folder in (("--out", out, out), ("--page", page, page.parent)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UsageError(f"{flag} {given} cannot be written: {there} is no folder that can be written to.")
    if page.is_dir():
        raise UsageError(f"--page {page} is a folder: give the name of a file, such as {page / 'page.md'}.")
    if page.suffix != ".md":
        raise UsageError(f"--page {page}: a page is written as .md, not as {page.suffix or 'a file without suffix'!r}.")


def _failures(outcome: Outcome, records: Records, page: Path) -> str:
    name, said = next(iter(outcome.failed.items()))
    several = f"{len(outcome.failed)} steps failed" if len(outcome.failed) > 1 else f"the step {name} failed"
    left = f", and {len(outcome.left)} more need them" if outcome.left else ""
    return (
        f"{several}{left}; {page} was written without them. The first said: {said} (see {records.folder / name}.log). "
        "The same command runs only what is missing."
    )
