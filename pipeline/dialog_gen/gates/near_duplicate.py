"""Pairs that repeat an earlier pair about the same image."""

from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import jaccard, pair_text, shingles


class NearDuplicateSettings(Limits):
    """The limits of the Jaccard similarity."""

    max: Limit = 0.85


@GATES.register("near_duplicate")
class NearDuplicate(Gate[NearDuplicateSettings]):
    """Highest Jaccard similarity of the pair's shingles (`words.shingles`) with those of an earlier pair of its row.

    "Is it red? Yes." after "Is it red? Yes" -> 1; the first pair -> 0. "Is it red? no" after "Is it red? yes": the 10
    shingles of "is it red no" and the 11 shingles of "is it red yes" have 8 in common -> 8/13.
    """

    description = "highest similarity to an earlier pair of the same image"
    settings_class = NearDuplicateSettings
    order = 50

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        known: list[frozenset[str]] = []
        scores: Scores = []
        for pair in row["texts"]:
            own = shingles(pair_text(pair))
            scores.append(max((jaccard(own, earlier) for earlier in known), default=0.0))
            known.append(own)
        return scores
