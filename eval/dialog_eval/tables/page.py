"""What a page of results says, before it is written as Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass

from dialog_eval.results import Results
from dialog_eval.tables.pooling import Section
from dialog_eval.tables.trainings import Training, trainings
from dialog_eval.tables.verdict import Sentence, title, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The content of a page of results."""

    title: str
    trainings: list[Training]
    verdict: list[Sentence]
    sections: list[Section]


def page_of(sections: list[Section], read: Sequence[Results], heading: str | None = None) -> Page:
    """The page of pooled sections and of the results they come from; `heading` replaces the title."""
    trained = trainings(read)
    warnings = [
        Sentence(f"{one.label} was trained on test images", f": {one.test_images} Measure on others.")
        for one in trained
        if one.trained_on_tests
    ]
    return Page(
        title=heading or title(sections),
        trainings=trained,
        verdict=[*warnings, *verdict(sections)],
        sections=sections,
    )
