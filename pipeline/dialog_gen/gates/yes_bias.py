"""Whether the dataset says yes too often."""

from collections.abc import Sequence

import numpy as np

from dialog_gen.gates.hash_collections import HashList, hash_of_pair, sha256_of_arrays
from dialog_gen.gates.scorer import Row, Scores
from dialog_gen.gates.settings import YesBiasSettings
from dialog_gen.gates.words import words


class YesBias:
    """For a yes, the dataset's share of yes if it were the last yes that is kept; None for other answers.

    An answer is a yes or a no by its first word. All yeses stand in an order by a hash of image and pair, which is as
    good as random. The k-th of them scores k / (k + number of noes): the last one scores the dataset's share of yes,
    and marking what lies above a limit keeps as many yeses as the limit allows. With 3 yeses and 1 no the scores are
    1/2, 2/3 and 3/4: `max = 0.7` marks one yes, and 2 of the 3 answers that are kept are yeses.

    Memory: 8 bytes a yes.
    """

    columns = ("image_id", "texts")

    def __init__(self, settings: YesBiasSettings) -> None:
        self._settings = settings
        self._surveyed = HashList()
        self._yeses, self._noes = np.empty(0, np.uint64), 0

    def survey(self, rows: Sequence[Row]) -> None:
        """See `SetScorer`."""
        for row in rows:
            for place, pair in enumerate(row["texts"]):
                said = says_yes(pair, self._settings)
                if said:
                    self._surveyed.append(hash_of_pair(row, place))
                self._noes += said is False

    def settle(self) -> str:
        """See `SetScorer`."""
        self._yeses = np.sort(self._surveyed.take())
        return sha256_of_arrays(self._yeses, np.array(self._noes))

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """See `Scorer`."""
        return [[self._score(row, place) for place in range(len(row["texts"]))] for row in rows]

    def close(self) -> None:
        """See `Scorer`."""

    def _score(self, row: Row, place: int) -> float | None:
        enough = len(self._yeses) + self._noes >= self._settings.least_answers
        if not enough or not says_yes(row["texts"][place], self._settings):
            return None
        kept = int(np.searchsorted(self._yeses, np.uint64(hash_of_pair(row, place)), side="right"))
        return kept / (kept + self._noes)


def says_yes(pair: dict[str, str], settings: YesBiasSettings) -> bool | None:
    """True for a yes, False for a no, None for other answers."""
    first = next(iter(words(pair["assistant"])), "")
    return True if first in settings.yes else False if first in settings.no else None
