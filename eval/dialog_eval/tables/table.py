"""`dialog-eval table`: combines results.json files into a page in Markdown or HTML, with plots."""

import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from dialog_eval.results import load_results
from dialog_eval.tables.forest import forest_plot
from dialog_eval.tables.html import html
from dialog_eval.tables.markdown import markdown
from dialog_eval.tables.page import page_of
from dialog_eval.tables.plots import noise_plot, sweep_plot
from dialog_eval.tables.pooling import Section, pool_results
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_file


def write_table(
    files: Sequence[str | PathLike[str]],
    out: str | PathLike[str],
    plot: str | PathLike[str] | None = None,
    *,
    forest: str | PathLike[str] | None = None,
    title: str | None = None,
) -> None:
    """Writes the page of results.json files to `out` (.md or .html), and plots to .png files.

    The page says what was trained on what, what the differences to the baseline are, and how far they hold; details
    are folded away: one section per task, dataset, protocol and baseline, with one row per label and one column per
    measure. The HTML is a single file with a forest plot of the differences, and with wins and losses where the results
    have them; the Markdown links to the plots. Existing files are replaced only after everything is computed.

    `plot` is the plot of the sweep, or of the differences if the files have no sweep. `forest` is the plot of the
    differences in any case. `title` replaces the heading that names what is compared.

    Raises UsageError for other suffixes, for files that are not results or cannot be combined (see `pool`), and for a
    plot of files that compare nothing; MissingExtraError if a plot needs matplotlib and it is not installed;
    DialogGenError if the disk refuses a write.
    """
    out, plot, forest = Path(out), *(None if path is None else Path(path) for path in (plot, forest))
    if out.suffix not in (".md", ".html"):
        raise UsageError(
            f"{out}: a table is written as .md or .html, not as {out.suffix or 'a file without suffix'!r}."
        )
    for path in (plot, forest):
        if path is not None and path.suffix != ".png":
            raise UsageError(f"{path}: a plot is written as .png, not as {path.suffix or 'a file without suffix'!r}.")
    read = [(path, load_results(path)) for path in map(Path, files)]
    sections = pool_results(read)
    sweep = None if plot is None else _sweep(sections)
    if sweep is None and plot is not None:
        # There is one plot; it is written wherever it was asked for.
        differences, places = forest_plot(sections), [path for path in (plot, forest) if path is not None]
    else:
        differences, places = None if forest is None else forest_plot(sections), [] if forest is None else [forest]
    page = page_of(sections, [results for _, results in read], title)
    if out.suffix == ".html":
        content = html(page, sweep)
    else:
        # Relative links, so that the files can be moved, committed or shared together.
        links = [Path(os.path.relpath(path, out.parent)).as_posix() for path in places[:1]]
        swept = None if sweep is None or plot is None else Path(os.path.relpath(plot, out.parent)).as_posix()
        content = markdown(page, links[0] if links else None, swept)
    for path in places:
        if differences is not None:
            write_file(path, differences)
    if plot is not None and sweep is not None:
        write_file(plot, sweep)
    write_file(out, content.encode())


def _sweep(sections: Sequence[Section]) -> bytes | None:
    """The plot of a sweep over noise or over the baseline's share; None if the files have none."""
    rows = [row for section in sections for row in section.rows]
    if any(row.noise is not None for row in rows):
        return noise_plot(sections)
    return sweep_plot(sections) if any(row.blend is not None for row in rows) else None
