"""The page in HTML: one file that fetches nothing, with the forest plot as SVG and wins and losses with images."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from dialog_eval.results import Example
from dialog_eval.tables import wording
from dialog_eval.tables.forest import LEGEND, forest
from dialog_eval.tables.markdown import SWEEP_TEXT
from dialog_eval.tables.overview import overview
from dialog_eval.tables.page import Page
from dialog_eval.tables.pooling import Section

# Examples of one model in one section, and thumbnails on the page: about 6 kB each.
_MOST_EXAMPLES = 6
_MOST_THUMBNAILS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Wins and losses of one model in one section."""

    label: str
    baseline: str
    details: str
    """Task, dataset and measure"""
    wins: list[Example]
    losses: list[Example]
    win_count: int
    loss_count: int


def html(page: Page, sweep: bytes | None) -> str:
    """The page, with the PNG of a sweep; the template escapes all values."""
    systems = overview(page.sections)
    parts = [
        {"title": title, "details": details, "section": section, "caption": wording.caption(section)}
        for section, (title, details) in zip(page.sections, wording.headings(page.sections), strict=True)
    ]
    environment = Environment(
        loader=PackageLoader("dialog_eval.tables", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("table.html.jinja").render(
        page=page,
        forest=forest(page.sections),
        legend=LEGEND,
        systems=systems,
        overview_caption=wording.overview_caption(systems, page.sections) if systems else "",
        marks_note=wording.marks_note(page.sections),
        parts=parts,
        galleries=list(_galleries(page.sections)),
        sweep=None if sweep is None else base64.b64encode(sweep).decode(),
        sweep_text=SWEEP_TEXT,
        wording=wording,
    )


def _galleries(sections: list[Section]) -> Iterator[Gallery]:
    """The galleries of all sections, as many as the page has room for."""
    room = _MOST_THUMBNAILS
    for section, (title, details) in zip(sections, wording.headings(sections), strict=True):
        for label, examples in section.examples.items():
            wins, losses = examples.wins[:_MOST_EXAMPLES], examples.losses[:_MOST_EXAMPLES]
            room -= sum(part.thumbnail is not None for one in (*wins, *losses) for part in one.parts())
            if room < 0:
                return
            if wins or losses:
                yield Gallery(
                    label=label,
                    baseline=examples.baseline,
                    details=f"{title}, {examples.measure}: {details}",
                    wins=wins,
                    losses=losses,
                    win_count=examples.win_count,
                    loss_count=examples.loss_count,
                )
