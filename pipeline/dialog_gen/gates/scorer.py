"""What a quality gate is to the pass that applies it: something that scores the pairs of rows.

A scorer's constructor checks its settings and what it needs, and loads nothing: it is called before a run begins.
Models are loaded at the first `score`. Whether a score speaks against a pair is for the gate's limits to say.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Row = Mapping[str, Any]
"""A record, or the columns of it that were asked for."""
Scores = list[float | None]
"""One score a pair of a row; None where nothing can be said."""


class Scorer(Protocol):
    """Scores pairs by their rows alone. Equal rows get equal scores, whatever other rows there are."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the record that it reads."""
        ...

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """The scores of the pairs of each row, in order. Called with a row group (a hundred rows) at a time."""
        ...

    def close(self) -> None:
        """Lets go of models; called once, also where `score` never was."""
        ...


@runtime_checkable
class SetScorer(Scorer, Protocol):
    """Scores pairs by the whole dataset: each row is surveyed once, all of them before the first is scored."""

    def survey(self, rows: Sequence[Row]) -> None:
        """Takes in rows, with the same columns as `score`."""
        ...

    def settle(self) -> str:
        """Ends the survey; a hash of all that the scores depend on beside the row itself."""
        ...
