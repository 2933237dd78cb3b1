"""Scores that a row's own columns give: each function takes a row and returns a score a pair.

Words are those of `words.words`. The worked examples are rows of tests/pipeline/test_gates.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from dialog_gen.gates.scorer import Row, Scores
from dialog_gen.gates.words import FUNCTION_WORDS, jaccard, pair_text, shingles, words

_LONGEST_PERIOD = 32


@dataclass(frozen=True, slots=True)
class PairScorer:
    """A function of a row as a `Scorer`."""

    of_row: Callable[[Row], Scores]
    columns: tuple[str, ...] = ("texts",)

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """See `Scorer`."""
        return [self.of_row(row) for row in rows]

    def close(self) -> None:
        """See `Scorer`."""


def echo(row: Row) -> Scores:
    """Words of the longest run that question and answer share, over the words of the longer of the two; in [0, 1].

    1 where the answer is the question again, and where it holds no word.
    "What color is it?" "what color is it" -> 4/4; "What color is it?" "It is red." -> 1/4 ("is", or "it").
    """
    return [_echo(words(pair["user"]), words(pair["assistant"])) for pair in row["texts"]]


def _echo(question: list[str], answer: list[str]) -> float:
    if not answer:
        return 1.0
    shared = SequenceMatcher(None, question, answer, autojunk=False).find_longest_match()
    return shared.size / max(len(question), len(answer))


def repetition(row: Row) -> Scores:
    """Fraction of the answer's words that go on repeating the words right before them; in [0, 1).

    A word counts if, for some period p up to 32, it stands in a run of at least p words that each equal the word p
    places before. "a red, a red, a red star": p = 2, "a red a red" repeat -> 4/7. "very very good" -> 1/3.
    "a red and a blue star" -> 0: only "a" comes again. None for an answer without words.
    """
    return [_repetition(words(pair["assistant"])) for pair in row["texts"]]


def _repetition(answer: list[str]) -> float | None:
    if not answer:
        return None
    repeated = set[int]()
    for period in range(1, min(len(answer) // 2, _LONGEST_PERIOD) + 1):
        run = 0
        for i in range(period, len(answer)):
            run = run + 1 if answer[i] == answer[i - period] else 0
            if run == period:
                repeated.update(range(i - period + 1, i + 1))
            elif run > period:
                repeated.add(i)
    return len(repeated) / len(answer)


def truncation(row: Row) -> Scores:
    """1 if generation of the answer stopped at the token limit, else 0.

    Of an answer that lists several pairs, parsing has dropped the one that was cut: what was accepted is whole. Where
    turns of both sorts are mixed and one was cut, finish reasons do not tell whose pair it is: None.
    """
    pairs, reasons = len(row["texts"]), row["finish_reasons"]
    if len(reasons) == pairs:
        return [float(reason == "length") for reason in reasons]
    told = len(reasons) == 1 or "length" not in reasons
    return [0.0 if told else None] * pairs


def leak(row: Row) -> Scores:
    """Fraction of the answer's content words that stand in the question; in [0, 1].

    Content words are all but English function words. "What color is the red car?" "Red." -> 1/1; "What is the man
    holding?" "The man is holding a phone." -> 2/3 (man, holding; not phone). None for an answer without content words,
    and for questions with "or", which name their answer by right.
    """
    return [_leak(words(pair["user"]), words(pair["assistant"])) for pair in row["texts"]]


def _leak(question: list[str], answer: list[str]) -> float | None:
    content = set(answer) - FUNCTION_WORDS
    return len(content & set(question)) / len(content) if content and "or" not in question else None


def near_duplicates(row: Row) -> Scores:
    """Highest Jaccard similarity of the pair's shingles (`words.shingles`) with an earlier pair's of the same row.

    "Is it red? Yes." after "Is it red? Yes" -> 1; the first pair -> 0. "Is it red? no" after "Is it red? yes": of the
    shingles of "is it red no" (10) and "is it red yes" (11) 8 are shared -> 8/13.
    """
    known: list[frozenset[str]] = []
    scores: Scores = []
    for pair in row["texts"]:
        own = shingles(pair_text(pair))
        scores.append(max((jaccard(own, earlier) for earlier in known), default=0.0))
        known.append(own)
    return scores


def length(row: Row) -> Scores:
    """Words of the answer. "It's 3.5 m, yes!" -> 4."""
    return [float(len(words(pair["assistant"]))) for pair in row["texts"]]


def logprob(row: Row) -> Scores:
    """Mean log-probability of the answer's tokens, as recorded; None where it was not."""
    return list(row["answer_logprobs"] or [None] * len(row["texts"]))
