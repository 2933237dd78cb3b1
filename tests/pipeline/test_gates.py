"""Scores of single rows, against answers worked out by hand."""
# ruff: noqa: RUF001 - letters of other scripts are what is tested

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialog_gen.core.errors import UsageError
from dialog_gen.gates.base import GATES, Row, Scores
from dialog_gen.gates.language import Language, LanguageSettings
from dialog_gen.gates.words import jaccard, shingles, words


def scores_by(name: str) -> Callable[[Row], Scores]:
    gate = GATES.get(name)
    return gate(gate.settings_class(), {}).score_row


empty, leak, length, logprob, near_duplicates, repetition, truncation = map(
    scores_by, ("empty", "leak", "length", "logprob", "near_duplicate", "repetition", "truncation")
)


def row_of(*pairs: tuple[str, str], **columns: Any) -> dict[str, Any]:
    return {"texts": [{"user": user, "assistant": assistant} for user, assistant in pairs], **columns}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's 3.5 m, yes!", ["it's", "3.5", "m", "yes"]),
        ("It\u2019s RED,blue.", ["it's", "red", "blue"]),
        ("snow_white 1,000", ["snow", "white", "1,000"]),
        ("Straße", ["strasse"]),
        ("ＦＵＬＬ ｗｉｄｔｈ", ["full", "width"]),
        ("Ёлка — это дерево", ["ёлка", "это", "дерево"]),
        ("一只猫。Cat", ["一", "只", "猫", "cat"]),
        ("चित्र में क्या है।", ["चित्र", "में", "क्या", "है"]),
        ("e\u0301te\u0301", ["été"]),
        (" … ?! --- ", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("score", "question", "answer", "expected"),
    [
        (empty, "What color is it?", "what color is it", 1),
        (empty, "What color is it?", "It is red.", 1 / 4),
        (empty, "What color is it?", "...", 1),
        (empty, "What color is it?", "", 1),
        (empty, "What color is it?", "blue", 0),
        (empty, "Is it red?", "Is it red? Yes, it is red.", 3 / 7),
        (empty, "Is the star small or large?", "large", 1 / 6),
        (empty, "?", "yes", 0),
        (repetition, "?", "a red, a red, a red star", 4 / 7),
        (repetition, "?", "very very good", 1 / 3),
        (repetition, "?", "a red and a blue star", 0),
        (repetition, "?", "no no no no", 3 / 4),
        (repetition, "?", "The dog is big. The dog is big.", 4 / 8),
        (repetition, "?", "the dog the dog the", 3 / 5),
        (repetition, "?", "猫猫猫猫", 3 / 4),
        (repetition, "?", "yes", 0),
        (repetition, "?", "...", None),
        (leak, "What color is the red car?", "Red.", 1),
        (leak, "What is the man holding?", "The man is holding a phone.", 2 / 3),
        (leak, "Is there a dog?", "Yes, there is a dog.", 1 / 2),
        (leak, "Is the star small or large?", "large", None),
        (leak, "Where is it?", "It is there.", None),
        (leak, "Where is the star?", "...", None),
        (leak, "Is the man wearing a hat?", "The man is not wearing a hat.", 3 / 4),
        (length, "?", "It's 3.5 m, yes!", 4),
        (length, "?", "...", 0),
        (length, "?", "一只猫", 3),
    ],
)
def test_a_score_of_one_pair(
    score: Callable[[Row], Scores], question: str, answer: str, expected: float | None
) -> None:
    other = ("And what else?", "A dog.")
    assert score(row_of((question, answer), other))[0] == pytest.approx(expected)
    assert score(row_of(other, (question, answer)))[1] == pytest.approx(expected)


def test_near_duplicates_are_told_from_earlier_pairs() -> None:
    row = row_of(("Is it red?", "Yes"), ("is it red", "yes!"), ("Is it red?", "no"), ("Where?", "There."))
    scores = near_duplicates(row)
    assert scores[:3] == pytest.approx([0, 1, 8 / 13])
    assert scores[3] is not None
    assert scores[3] < 0.2
    assert near_duplicates(row_of()) == []


@pytest.mark.parametrize(
    ("pairs", "reasons", "expected"),
    [
        (2, ["stop", "length"], [0, 1]),
        (1, ["length"], [1]),
        (3, ["stop"], [0, 0, 0]),
        (3, ["length"], [0, 0, 0]),  # parsing has dropped what was cut
        (4, ["stop", "stop"], [0, 0, 0, 0]),
        (4, ["stop", "length"], [None] * 4),
    ],
)
def test_truncation(pairs: int, reasons: list[str], expected: Scores) -> None:
    assert truncation(row_of(*[("?", "yes")] * pairs, finish_reasons=reasons)) == expected


def test_logprob_is_as_recorded() -> None:
    pairs = [("?", "yes"), ("?", "no")]
    assert logprob(row_of(*pairs, answer_logprobs=[-0.25, None])) == [-0.25, None]
    assert logprob(row_of(*pairs, answer_logprobs=None)) == [None, None]


@pytest.fixture(scope="module")
def english() -> Language:
    return Language(LanguageSettings(), {})


@pytest.mark.parametrize(
    ("question", "answer", "least", "most"),
    [
        ("What color is the circle?", "red", 0.8, 1),
        ("What is the man doing?", "He is riding a bicycle down a busy street.", 0.95, 1),
        ("Was ist auf dem Bild?", "Eine Katze sitzt auf dem Tisch.", 0, 0.01),
        ("¿Qué hay en la imagen?", "Un gato.", 0, 0.01),
        ("Что на картинке?", "Кот.", 0, 0.01),
        ("图片里有什么？", "一只猫。", 0, 0.01),
    ],
)
def test_language(english: Language, question: str, answer: str, least: float, most: float) -> None:
    [[score]] = english.score([row_of((question, answer))])
    assert score is not None
    assert least <= score <= most


@pytest.mark.parametrize(
    "pair", [("yes?", "yes"), ("2?", "2000000000000000000000"), ("What brand?", "Coca Cola"), ("", "")]
)
def test_of_a_short_pair_no_language_is_told(english: Language, pair: tuple[str, str]) -> None:
    assert english.score([row_of(pair, ("What is it?", "It is a small dog."))])[0][0] is None


def test_another_language_can_be_expected() -> None:
    german = Language(LanguageSettings(expected="de"), {})
    [scores] = german.score([row_of(("Was ist auf dem Bild?", "Eine Katze."), ("What is it?", "A dog on a street."))])
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[0] > 0.9
    assert scores[1] < 0.1
    with pytest.raises(UsageError, match="expected = 'eng' is not a language that can be detected: did you mean 'en'"):
        Language(LanguageSettings(expected="eng"), {})


texts = st.lists(st.sampled_from(["a", "b", "red", "Dog", "狗", "or", "?", "..."])).map(" ".join) | st.text()


@given(question=texts, answer=texts)
def test_scores_are_fractions(question: str, answer: str) -> None:
    row = row_of((question, answer), (answer, question))
    for score in (empty, repetition, leak, near_duplicates):
        assert all(value is None or 0 <= value <= 1 for value in score(row))
    assert length(row)[0] == len(words(answer))


@given(answer=st.lists(st.sampled_from("abc"), min_size=1, max_size=14))
def test_repetition_is_what_copies_the_block_before_it(answer: list[str]) -> None:
    size = len(answer)
    blocks = [(start, period) for period in range(1, size) for start in range(period, size - period + 1)]
    copied = {
        place
        for start, period in blocks
        if answer[start : start + period] == answer[start - period : start]
        for place in range(start, start + period)
    }
    assert repetition(row_of(("?", " ".join(answer)))) == [len(copied) / size]


@given(first=texts, second=texts)
def test_similarity_of_texts(first: str, second: str) -> None:
    one, other = shingles(first), shingles(second)
    assert jaccard(one, one) == 1
    assert jaccard(one, other) == jaccard(other, one) == pytest.approx(1 - len(one ^ other) / len(one | other))


def test_asking_for_a_gate_imports_no_library_that_only_scoring_needs() -> None:
    slow = {"torch", "transformers", "vllm", "open_clip", "datasketch", "scipy", "py3langid"}
    script = f"import sys; from dialog_gen.gates.base import GATES; GATES.names(); print({slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
