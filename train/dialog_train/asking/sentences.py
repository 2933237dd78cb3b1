"""Sentences in which a generator stated its own answers, and how it would state other answers to the same questions.

A dataset may have a column of statements: each question and answer as a sentence of the generator. Where the sentence
names the answer once, the rest of it is the question's form, in which any answer can stand:

    What color is the star?   purple   "There is a purple star."   -> there is a ... star

An answer yes or no is named by no sentence; for those, the dataset must have sentences of both. Rules (`statements`)
state everything else.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

from dialog_gen.core.hashing import sha256_json
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.record import STATEMENTS, kept_places
from dialog_train.asking.prior import MOST_PAIRS, forget_rarest
from dialog_train.asking.questions import YES_NO, answer_key, fits, tidy
from dialog_train.asking.statements import statement

_PLACE = "\0"
"""Where the answer stands in a form; no text of a dataset has this character."""


class Sentences:
    """How questions and answers are stated: as the generator does, and by rules where it did not."""

    def __init__(self, counts: Mapping[str, Counter[str]]) -> None:
        """`counts`: keys as in `forms_of` -> how often each form was seen."""
        self._best = {key: max(sorted(found), key=found.__getitem__) for key, found in counts.items() if found}

    @classmethod
    def of_triples(cls, told: Iterable[tuple[str, str, str | None]]) -> "Sentences":
        """Counts questions, answers and sentences; None is no sentence."""
        counts, size = defaultdict[str, Counter[str]](Counter), 0
        for question, answer, sentence in told:
            for key, form in forms_of(question, answer, sentence).items():
                size += form not in counts[key]
                counts[key][form] += 1
            size = forget_rarest(counts, size)
        return cls(counts)

    @classmethod
    def of_dataset(
        cls,
        dataset: str | Path | DatasetFolder,
        *,
        uses: Callable[[str], bool] = lambda image_sha256: True,
        most_pairs: int = MOST_PAIRS,
    ) -> "Sentences":
        """Counts the kept pairs of a dataset, the first `most_pairs` of them; none if it has no column of statements.

        `uses` gets the SHA-256 of an image and says whether its dialogue is counted. Raises UsageError for a folder
        that is no dataset, and for a damaged one.
        """
        folder = open_dataset(dataset)
        if STATEMENTS not in folder.config():
            return cls({})
        rows = folder.rows(["image_sha256", "texts", "gates", STATEMENTS])
        told = (
            (row["texts"][place]["user"], row["texts"][place]["assistant"], row[STATEMENTS][place])
            for row in rows
            if row[STATEMENTS] and uses(row["image_sha256"])
            for place in kept_places(row)
        )
        return cls.of_triples(islice(told, most_pairs))

    def __len__(self) -> int:
        return len(self._best)

    @property
    def sha256(self) -> str:
        """Identifies the forms."""
        return sha256_json(self._best)

    def statement(self, question: str, answer: str, own: Mapping[str, str] | None = None) -> str:
        """The sentence that says what the answer says. `own`: forms of `forms_of` that come before the others."""
        forms = [form for key in _keys(question, answer) if (form := (own or {}).get(key) or self._best.get(key))]
        said = tidy(answer)
        # One of a yes and a no by rules would tell them apart by their style.
        if not said or len(forms) < len(_keys(question, answer)) or not fits(question, answer):
            return statement(question, answer)
        return forms[0].replace(_PLACE, said)


RULES = Sentences({})
"""States everything by rules."""


def forms_of(question: str, answer: str, sentence: str | None) -> dict[str, str]:
    """Key -> the form that a generator's sentence gives to its question; empty if it does not say the answer once.

    For an answer yes or no, the form is the sentence, and the key is of question and answer.
    """
    told, said = tidy(sentence or ""), tidy(answer)
    if not told or not said:
        return {}
    key = _keys(question, answer)[0]
    if answer_key(said) in YES_NO:
        return {key: told}
    form, found = re.subn(rf"(?<!\w){re.escape(said)}(?!\w)", _PLACE, told, flags=re.IGNORECASE)
    return {key: form} if found == 1 else {}


def _keys(question: str, answer: str) -> list[str]:
    """What a form is found by: the question; for yes and no the question with this answer, and with the other."""
    asked, said = answer_key(question), answer_key(answer)
    return [asked] if said not in YES_NO else [f"{word}\n{asked}" for word in (said, *(YES_NO - {said}))]
