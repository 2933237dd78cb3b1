"""Shows the HTML report of a dataset in a browser."""

import os
import sys
import tempfile
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.inspect.page import ReportSummary, report


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSummary:
    """The report that was made, and whether a browser was asked to show it."""

    report: ReportSummary
    opened: bool

    def __str__(self) -> str:
        how = "opened in your browser" if self.opened else "no browser can be opened here; open this file in one"
        return f"{self.report}\n{how}:\n{self.report.out}"


def view(
    dataset: str | Path | DatasetFolder,
    *,
    compare: str | Path | DatasetFolder | None = None,
    samples: int = 1000,
    seed: int = 0,
    max_mb: float = 20,
    on_progress: OnProgress = ignore_progress,
) -> ViewSummary:
    """Makes the report (`report`) as a file in a new temporary folder and opens it in a browser, if there is a display.

    The file stays, because the browser reads it after this call. Raises the errors of `report`.
    """
    folder = open_dataset(dataset)
    out = Path(tempfile.mkdtemp(prefix="dialog-gen-view-")) / "report.html"
    try:
        made = report(folder, out, compare=compare, samples=samples, seed=seed, max_mb=max_mb, on_progress=on_progress)
    except BaseException:
        out.parent.rmdir()
        raise
    return ViewSummary(report=made, opened=_has_display() and _open(out))


def _open(page: Path) -> bool:
    try:
        return webbrowser.open(page.as_uri())
    except webbrowser.Error:
        return False


def _has_display() -> bool:
    """Whether a browser would have a window: without one, a browser for terminals would take over the terminal."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in names)
