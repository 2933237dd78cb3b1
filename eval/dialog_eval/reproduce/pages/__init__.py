"""Pages of plans: each is Markdown, with the figures of what was measured, and links to a page with all of them."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dialog_eval.reproduce.claims import load_claims
from dialog_eval.reproduce.measured import Measured
from dialog_eval.reproduce.pages.plain import plain_page
from dialog_eval.reproduce.pages.published import published_page, unknown_rows
from dialog_eval.reproduce.pages.study import study_page
from dialog_eval.reproduce.plan import Plan, load_plan
from dialog_eval.reproduce.run import Records
from dialog_eval.reproduce.steps import Step, plan_steps
from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.files import write_file
from dialog_gen.core.plural import count_of


def write_page(
    plan: Plan, scale: str, steps: Sequence[Step], out: Path, page: Path, tell: Callable[[str], None]
) -> None:
    """Writes the page of a plan, from those of its steps that are done, and beside it one with all figures.

    Raises DialogGenError if nothing was measured, or if the disk refuses a write.
    """
    records = Records(out)
    # A step that failed may have left a file, too.
    taken = records.done(steps)
    counted = [step for step in steps if step.name in taken]
    own = {step.makes for step in counted}
    labels = {name: arm.label for name, arm in plan.arms.items()}
    for other in _other_plans(plan, scale):
        more = {arm: made.label for arm, made in other.arms.items() if arm not in labels}
        others = plan_steps(other, out)
        done = records.done(others)
        counted += [step for step in others if step.arm in more and step.name in done]
        labels |= more
    measured = Measured(counted, labels, by_start=plan.has_starts)
    files = [file for file in measured.files if file in own]
    if not files:
        raise DialogGenError(f"nothing was measured: the logs of the steps are in {out / 'steps'}.")
    details = page.with_name(f"{page.stem}-details.md")
    _table(files, details, tell)
    if plan.page.kind == "study":
        text = study_page(plan, plan.page, measured, page, details)
    elif plan.page.kind == "table":
        text = published_page(plan, plan.page, scale, measured, details)
        for line in unknown_rows(plan.page, measured):
            tell(line)
    else:
        text = plain_page(plan, details)
    write_file(page, f"{text}\n{_made_by(plan, scale, len(steps), taken)}".encode())


def check_page(plan: Plan, scale: str) -> None:
    """Raises UsageError if the page names claims or plans that are not there; before the steps have run for hours."""
    _other_plans(plan, scale)
    if plan.page.kind == "study" and plan.page.claims:
        load_claims(plan.page.claims)


def _other_plans(plan: Plan, scale: str) -> list[Plan]:
    return [load_plan(name, scale) for name in (plan.page.with_plans if plan.page.kind == "study" else ())]


def _table(files: Sequence[Path], out: Path, tell: Callable[[str], None]) -> None:
    """Runs `dialog-eval table`."""
    words = ["dialog-eval", "table", *map(str, files), "--out", str(out)]
    tell(f"table: {len(files)} results -> {out}")
    done = subprocess.run(  # noqa: S603 - this program
        [sys.executable, "-m", "dialog_eval", *words[1:]], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DialogGenError(f"dialog-eval table failed: {said[-1] if said else done.returncode}")


def _made_by(plan: Plan, scale: str, steps: int, taken: Mapping[str, float]) -> str:
    """How to make the page again, and how long it took; `taken`: step that is done -> seconds."""
    missing, minutes = steps - len(taken), sum(taken.values()) / 60
    note = f" Missing: {count_of(missing, 'step')}, which the same command runs." if missing else ""
    return (
        f"Made by `dialog-eval reproduce {plan.given} --scale {scale}`: {count_of(len(taken), 'step')}, which took "
        f"{minutes:.0f} minutes one after the other. With `--dry-run` it prints their commands.{note}\n"
    )
