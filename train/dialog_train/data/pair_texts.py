"""The texts that a question-answer pair becomes in a training set: one, or one that is right and others that are wrong.

A candidate set has G texts of each pair: the right one, `foils` wrong ones, with `denials` two more, which deny the
right one and the first wrong one, and with `conjunctions` four more. These say the pair and another one of the same
image at once, of the same type of question if there is one: first both as they are right, then with a wrong answer to
the other one, to this one, and to both.

Two thirds of the wrong answers are what the dialogues answer to questions of the same type and form, drawn by how
frequent they are. The others, and more where these are too few, are answers to other types of questions, so that what a
question asks for is learned, too: with `fill_up` "misfits" those that do not fit the question ("red" for "How many
balls are there?"), whose texts keep the question; with "all" any, although statements of them can be true of the image
("the ball is red", for "What size is the ball?"). After a question, as text, an answer to another type is wrong in any
case. No wrong answer is one that the same image has to the same question, or says more or less of the same words,
however they are written ("2" and "two"); and beside an answer that does not fit its question or leaves open how many,
there is none. Synonyms are not known, and a type such as "what is" has answers of which two can be true. Only pairs
that no gate marks are counted; if self-consistency kept the right answer, the generator gave no other one when it was
asked again.

The texts of a pair are statements, or the question and the answer, or with "both" one of the two, as its image and
number decide. Statements are the generator's own sentences where the dataset has them (see `asking.sentences`), and
made by rules elsewhere; the texts of a pair are always made in one of the two ways, so that only their meaning tells
the right one.
"""

import random
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

from dialog_gen.core.hashing import sha256_json
from dialog_train.asking.prior import AnswerPrior, question_type
from dialog_train.asking.questions import (
    YES_NO,
    Form,
    answer_key,
    fits,
    form_of,
    is_definite,
    is_vague,
    meaning,
)
from dialog_train.asking.sentences import RULES, Sentences, forms_of
from dialog_train.asking.statements import conjunction, negated
from dialog_train.config import CandidateFormat, FillUp

Pair = Mapping[str, str]
"""A question under "user", its answer under "assistant"; the generator's sentence, if any, under "statement"."""

CONJUNCTIONS = 4
"""The number of texts that say two pairs at once."""

_TRIES = 8
_MOST_OTHERS = 1000
# A question of each form that the most answers do not fit.
_STRICTEST: dict[Form, str] = {
    "yes/no": "Is it?",
    "choice": "Is it this or that?",
    "number": "How many are there?",
    "other": "Where is it?",
}


class PairTexts(Protocol):
    """Makes the texts of pairs. It is sent to other processes."""

    @property
    def per_pair(self) -> int:
        """The number of texts of each pair."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """What determines the texts, as JSON values."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what the texts are made from in addition to the pairs; "" if that is nothing."""
        ...

    @property
    def uses_statements(self) -> bool:
        """Whether pairs are to have the generator's sentences."""
        ...

    def shares(self, pairs: Sequence[Pair]) -> list[float] | None:
        """The share of each pair's type of question among all pairs; None if these are not kept."""
        ...

    def __call__(self, image_id: str, pairs: Sequence[Pair]) -> list[str]:
        """The texts of an image's pairs, one pair after another. An empty text stands for one that does not exist."""
        ...


@dataclass(frozen=True, slots=True)
class OneText:
    """One text of each pair, in a format with {user} and {assistant}."""

    name: str
    text_format: str
    per_pair: int = 1
    fingerprint: str = ""
    uses_statements: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """Implements `PairTexts`."""
        return {"dialogue_format": self.name}

    def shares(self, pairs: Sequence[Pair]) -> None:
        """Implements `PairTexts`."""

    def __call__(self, image_id: str, pairs: Sequence[Pair]) -> list[str]:
        """Implements `PairTexts`."""
        return [self.text_format.format_map(pair) for pair in pairs]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The right text of each pair, wrong ones, and denials: see the module."""

    prior: AnswerPrior
    """Counts of the answers of the same dataset."""
    text_format: CandidateFormat
    foils: int
    """Wrong texts of each pair."""
    denials: bool
    conjunctions: bool = False
    fill_up: FillUp = "misfits"
    sentences: Sentences = RULES
    """How the generator of the same dataset states answers."""

    @property
    def per_pair(self) -> int:
        """Implements `PairTexts`."""
        return self.config["per_pair"]

    @property
    def config(self) -> dict[str, Any]:
        """Implements `PairTexts`."""
        return candidates_config(self.text_format, self.foils, self.fill_up, self.denials, self.conjunctions)

    @property
    def fingerprint(self) -> str:
        """Implements `PairTexts`."""
        return (
            sha256_json({"prior": self.prior.sha256, "sentences": self.sentences.sha256})
            if self.sentences
            else self.prior.sha256
        )

    @property
    def uses_statements(self) -> bool:
        """Implements `PairTexts`."""
        return self.text_format != "question_answer"

    def shares(self, pairs: Sequence[Pair]) -> list[float]:
        """Implements `PairTexts`."""
        return [self.prior.share(pair["user"]) for pair in pairs]

    def __call__(self, image_id: str, pairs: Sequence[Pair]) -> list[str]:
        """Implements `PairTexts`. The image's id and the pair's number determine the foils."""
        own = [self._own_texts(image_id, pairs, number) for number in range(len(pairs))]
        if not self.conjunctions:
            return [text for texts, _wrong in own for text in texts]
        return [
            text
            for number, (texts, _wrong) in enumerate(own)
            for text in (*texts, *self._conjunctions(image_id, pairs, own, number))
        ]

    def _own_texts(self, image_id: str, pairs: Sequence[Pair], number: int) -> tuple[list[str], str]:
        """The texts of a pair alone, and the first wrong one whose answer is of the form that is asked for."""
        pair = pairs[number]
        question, right = pair["user"], answer_key(pair["assistant"])
        stated = self._is_stated(image_id, number)
        if not right:  # only marks, such as "..."
            return [""] * (1 + self.foils + 2 * self.denials), ""
        taken = [key for other in pairs if _same(other["user"], question) and (key := answer_key(other["assistant"]))]
        # Beside an answer that does not fit or leaves open how many, another may be true.
        foils = list[str]()
        if fits(question, right) and not _leaves_open(question, right):
            foils = self.draw(question, taken, random.Random(f"{image_id}/{number}"), stated=stated)
        foils += [""] * (self.foils - len(foils))
        own = forms_of(question, right, pair.get("statement"))
        texts = [self._told(question, answer, own, stated) if answer else "" for answer in (right, *foils)]
        wrong = next((text for foil, text in zip(foils, texts[1:], strict=True) if foil and fits(question, foil)), "")
        if self.denials:
            texts += [negated(question, answer) or "" if answer else "" for answer in (right, *foils[:1])]
            texts += [""] * (not foils)
        return texts, wrong

    def _conjunctions(
        self, image_id: str, pairs: Sequence[Pair], own: Sequence[tuple[list[str], str]], number: int
    ) -> list[str]:
        """Of this pair and another: both right, the other wrong, this one wrong, both wrong; empty if there is none."""
        question, (right, *_), this_wrong = pairs[number]["user"], *own[number]
        others = [
            place
            for place, (texts, wrong) in enumerate(own)
            if wrong
            and not _same(pairs[place]["user"], question)
            and meaning(texts[0]) != meaning(right)
            and self._can_be_joined(pairs[place]["user"], texts[0])
        ]
        if not this_wrong or not others or not self._can_be_joined(question, right):
            return [""] * CONJUNCTIONS
        alike = [place for place in others if question_type(pairs[place]["user"]) == question_type(question)]
        rng = random.Random(f"{image_id}/{number}/and")
        (other_right, *_), other_wrong = own[rng.choice(alike or others)]
        # The model is to understand sentences and captions.
        phrase = rng.random() < 0.5
        return [
            f"{this} {other}" if self.text_format == "question_answer" else conjunction(this, other, phrase=phrase)
            for this in (right, this_wrong)
            for other in (other_right, other_wrong)
        ]

    def _can_be_joined(self, question: str, text: str) -> bool:
        """Whether a text is a statement, where texts are to be statements."""
        return self.text_format == "question_answer" or not text.startswith(question)

    def _is_stated(self, image_id: str, number: int) -> bool:
        """Whether the texts of a pair are statements."""
        if self.text_format == "both":
            return random.Random(f"{image_id}/{number}/format").random() < 0.5
        return self.text_format == "statement"

    def _told(self, question: str, answer: str, own: Mapping[str, str], stated: bool) -> str:
        return self.sentences.statement(question, answer, own) if stated else f"{question} {answer}"

    def draw(self, question: str, taken: Sequence[str], rng: random.Random, *, stated: bool) -> list[str]:
        """At most `foils` different wrong answers, none of which could be one of `taken`; see the module.

        `stated`: whether their texts will be statements.
        """
        found = dict[frozenset[str], str]()
        own = [meaning(answer) for answer in taken]
        form = form_of(question)
        if form == "number" and any("0" in one for one in own):
            own.append(meaning("no"))
        same = self._pool(question, form).drawn(self.foils, rng)
        if form == "choice":
            # "Is there a cat or a dog?" is answered by yes and no, or by cat and dog, which a yes does not exclude.
            yes_or_no = not YES_NO.isdisjoint(taken)
            same = (answer for answer in same if fits(question, answer) and (answer in YES_NO) == yes_or_no)
        others = self._others(question, form, rng, stated)
        # A third of the places is for what other types of questions are answered, if there is enough of it.
        for answers, most in ((same, self.foils - self.foils // 3), (others, self.foils), (same, self.foils)):
            while len(found) < most and (answer := next(answers, None)) is not None:
                words = meaning(answer)
                if words not in found and not any(_nested(words, one) for one in own):
                    found[words] = answer
        return list(found.values())

    def _others(self, question: str, form: Form, rng: random.Random, stated: bool) -> Iterator[str]:
        """Answers to other types of questions: those whose texts are wrong whatever the image shows, or all."""
        if stated and self.fill_up == "misfits":
            others = (a for a in self._misfits[form].drawn(self.foils, rng) if not fits(question, a))
        else:
            others = self._everything.drawn(self.foils, rng)
        if form in ("yes/no", "choice"):
            # "Is there a black cat?" may be answered by "black", "none" and "many".
            meant = meaning(question) | {"0"} | YES_NO
            others = (answer for answer in others if not meaning(answer) & meant and not is_vague(answer))
        return others

    def _pool(self, question: str, form: Form) -> "_Pool":
        kind = question_type(question), form
        if kind not in self._pools:
            counts = self.prior.answers(question)
            # What fits a choice depends on the choice; "several" may be true where "many" is.
            if form != "choice":
                counts = {answer: count for answer, count in counts.items() if fits(question, answer)}
            if form == "number":
                counts = {answer: count for answer, count in counts.items() if not is_vague(answer)}
            self._pools[kind] = _Pool(counts)
        return self._pools[kind]

    @cached_property
    def _pools(self) -> "dict[tuple[str, Form], _Pool]":
        return {}

    @cached_property
    def _misfits(self) -> "dict[Form, _Pool]":
        """Form of questions -> answers that do not fit some of these questions."""
        return {
            form: _Pool({answer: count for answer, count in self._frequent.items() if not fits(example, answer)})
            for form, example in _STRICTEST.items()
        }

    @cached_property
    def _everything(self) -> "_Pool":
        return _Pool(self._frequent)

    @cached_property
    def _frequent(self) -> dict[str, int]:
        counts = self.prior.all_answers()
        return {answer: counts[answer] for answer in _by_frequency(counts)[:_MOST_OTHERS]}


def candidates_config(
    text_format: CandidateFormat, foils: int, fill_up: FillUp, denials: bool, conjunctions: bool
) -> dict[str, Any]:
    """The `config` of `Candidates`."""
    return {
        "dialogue_format": text_format,
        "foils": foils,
        # Sets of earlier versions, which do not say it, have other foils.
        "fill_up": fill_up,
        "denials": denials,
        "conjunctions": conjunctions,
        "per_pair": 1 + foils + 2 * denials + CONJUNCTIONS * conjunctions,
    }


class _Pool:
    """Definite answers, which are drawn as often as they were counted."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._answers = list(filter(is_definite, _by_frequency(counts)))
        self._sums = list(accumulate(counts[answer] for answer in self._answers))

    def drawn(self, count: int, rng: random.Random) -> Iterator[str]:
        """Draws several times as many as `count`, with repetitions; then all answers, the most frequent first."""
        for _ in range(_TRIES * count if self._answers else 0):
            yield self._answers[bisect(self._sums, rng.random() * self._sums[-1])]
        yield from self._answers


def _by_frequency(counts: Mapping[str, int]) -> list[str]:
    """The most frequent first, and equal ones not in the order of counting, of which the fingerprint does not tell."""
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


def _leaves_open(question: str, answer: str) -> bool:
    """Whether other answers can be true, too: of "many", "more than 2", or "both" of a choice."""
    form = form_of(question)
    return (form == "number" and is_vague(answer)) or (form == "choice" and "both" in meaning(answer))


def _same(one: str, other: str) -> bool:
    return answer_key(one) == answer_key(other)


def _nested(one: frozenset[str], other: frozenset[str]) -> bool:
    """Whether one says all that the other says: "purple" and "light purple" may both be true."""
    return one <= other or other <= one
