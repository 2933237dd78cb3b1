"""The page of a plan that only shows its results: what `dialog-eval table` says, under the plan's title."""

from pathlib import Path

from dialog_eval.reproduce.pages.markdown import prose
from dialog_eval.reproduce.plan import Plan


def plain_page(plan: Plan, details: Path) -> str:
    """The page; it takes in the details, whose file goes."""
    _, _, body = details.read_text(encoding="utf-8").partition("\n")
    details.unlink()
    return "\n".join([f"# {prose(plan.title)}", "", plan.about.strip(), "", body.strip(), ""])
