"""Answers that raise the share of yes among the yes/no answers of the dataset above a limit."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StringConstraints

from dialog_gen.gates.base import GATES, Limit, Limits, Row, Scores, SetGate
from dialog_gen.gates.hash_collections import HashList, hash_of_pair, sha256_of_arrays
from dialog_gen.gates.words import words

LowerCase = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]


class YesBiasSettings(Limits):
    """The highest share of yes, and the words that make an answer a yes or a no."""

    max: Limit = 0.6
    yes: tuple[LowerCase, ...] = Field(default=("yes",), min_length=1)
    """An answer is a yes if its first word is one of these."""
    no: tuple[LowerCase, ...] = Field(default=("no",), min_length=1)
    """An answer is a no if its first word is one of these."""
    least_answers: int = Field(default=100, ge=1)
    """Minimum number of yes/no answers in the dataset. Fewer cannot show a bias, so they get no score."""


@GATES.register("yes_bias")
class YesBias(SetGate[YesBiasSettings]):
    """For a yes, the dataset's share of yes if it were the last yes that is kept; None for other answers.

    The first word of an answer makes it a yes or a no. All yeses are sorted by a hash of image and pair, which is a
    pseudorandom order. The k-th of them scores k / (k + number of noes). So the last one scores the dataset's share of
    yes, and marking scores above a limit keeps as many yeses as the limit allows. With 3 yeses and 1 no the scores
    are 1/2, 2/3 and 3/4: `max = 0.7` marks one yes, and 2 of the 3 answers that are kept are yeses.

    Memory: 8 bytes per yes.
    """

    description = "for a yes: the dataset's share of yes if it were the last that is kept"
    settings_class = YesBiasSettings
    unscored = "it scores a yes if the dataset has {least_answers} yes/no answers or more (least_answers)"
    columns = ("image_id", "texts")
    order = 70

    def __init__(self, settings: YesBiasSettings, dataset_config: Mapping[str, Any]) -> None:
        super().__init__(settings, dataset_config)
        self._surveyed = HashList()
        self._yeses, self._noes = np.empty(0, np.uint64), 0

    def survey(self, rows: Sequence[Row]) -> None:
        """Collects the yeses and counts the noes."""
        for row in rows:
            for place, pair in enumerate(row["texts"]):
                answer = says_yes(pair, self.settings)
                if answer:
                    self._surveyed.append(hash_of_pair(row, place))
                self._noes += answer is False

    def settle(self) -> str:
        """Sorts the yeses; returns a hash of them and of the number of noes."""
        self._yeses = np.sort(self._surveyed.take())
        return sha256_of_arrays(self._yeses, np.array(self._noes))

    def score_row(self, row: Row) -> Scores:
        """One score per pair."""
        return [self._score(row, place) for place in range(len(row["texts"]))]

    def _score(self, row: Row, place: int) -> float | None:
        enough = len(self._yeses) + self._noes >= self.settings.least_answers
        if not enough or not says_yes(row["texts"][place], self.settings):
            return None
        kept = int(np.searchsorted(self._yeses, np.uint64(hash_of_pair(row, place)), side="right"))
        return kept / (kept + self._noes)


def says_yes(pair: Mapping[str, str], settings: YesBiasSettings) -> bool | None:
    """True for a yes, False for a no, None for other answers."""
    first = next(iter(words(pair["assistant"])), "")
    return True if first in settings.yes else False if first in settings.no else None
