"""The official expectations are worked out by hand from vqaEval.py of GT-Vision-Lab/VQA at a013f00."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialog_eval.metrics.vqa import Mode, normalize_answer, ten_choose_nine, vqa_accuracy

MODES: tuple[Mode, ...] = ("official", "clean")


def test_closed_form_is_the_mean_over_nine_of_ten() -> None:
    for matches in range(11):
        agrees = [person < matches for person in range(10)]
        nines = [min(sum(nine) / 3, 1) for nine in itertools.combinations(agrees, 9)]
        assert len(nines) == 10
        assert ten_choose_nine(matches) == pytest.approx(statistics.mean(nines), abs=1e-12)
        for mode in MODES:
            answers = ["Red"] * matches + ["dark blue", "green"] * 5
            assert vqa_accuracy("red" if matches < 10 else "Red", answers[:10], mode) == ten_choose_nine(matches)
    assert [ten_choose_nine(matches) for matches in range(6)] == [0, 0.3, 0.6, 0.9, 1, 1]


# prediction, ten answers, official, clean
ACCURACIES = [
    # Unanimous: the official code compares as it is, but for outer spaces, tabs and line ends.
    ("yes", ["yes"] * 10, 1, 1),
    ("Yes", ["yes"] * 10, 0, 1),
    ("yes.", ["yes"] * 10, 0, 1),
    (" yes\n", ["yes\t"] * 10, 1, 1),
    ("dark\tblue", ["dark\nblue"] * 10, 1, 1),
    ("dark  blue", ["dark blue"] * 10, 0, 1),
    ("cat", ["the cat"] * 10, 0, 1),
    ("the cat", ["the cat"] * 10, 1, 1),
    ("2", ["two"] * 10, 0, 1),
    ("Yes", ["yes"] * 9 + ["yes "], 0, 1),
    # Not unanimous: both sides are normalised.
    ("Yes", ["yes"] * 9 + ["YES"], 1, 1),
    ("Yes", ["yes"] * 2 + ["no"] * 8, 0.6, 0.6),
    ("the cat", ["cat"] * 3 + ["a dog"] * 7, 0.9, 0.9),
    ("2", ["two"] * 1 + ["three"] * 9, 0.3, 0.3),
    ("dont know", ["don't know"] * 5 + ["?"] * 5, 1, 1),
    ("1000", ["1,000"] * 5 + ["many"] * 5, 1, 1),
    ("1000 mile", ["1,000-mile"] * 5 + ["far"] * 5, 0, 1),
    ("im fine", ["I'm fine"] * 5 + ["ok"] * 5, 0, 1),
    # What is left of an article, and of nothing.
    ("the", ["a"] * 5 + ["b"] * 5, 1, 0),
    ("", ["a"] * 5 + ["b"] * 5, 1, 0),
    ("a", ["a"] * 5 + ["b"] * 5, 1, 1),
    ("", ["b"] * 9 + ["c"], 0, 0),
]


@pytest.mark.parametrize(("prediction", "answers", "official", "clean"), ACCURACIES)
def test_accuracy(prediction: str, answers: list[str], official: float, clean: float) -> None:
    assert vqa_accuracy(prediction, answers) == vqa_accuracy(prediction, answers, "official") == official
    assert vqa_accuracy(prediction, answers, "clean") == clean


WORDS = ["a", "The", "yes", "two", "none", "dont", "Im", "let's", "1,000", "3.5", "U.S.", "cat"]
texts = st.lists(st.sampled_from([*WORDS, *";/()-,.?!':07x \t\n"])).map("".join)
modes = st.sampled_from(MODES)


@given(st.lists(texts, min_size=10, max_size=10), texts, modes)
def test_accuracy_counts_matches(answers: list[str], other: str, mode: Mode) -> None:
    for prediction in (answers[0], other):
        accuracy = vqa_accuracy(prediction, answers, mode)
        assert accuracy in (0, 0.3, 0.6, 0.9, 1)
        assert vqa_accuracy(prediction, answers[::-1], mode) == accuracy
    assert vqa_accuracy(answers[0], answers, mode) >= 0.3
    assert vqa_accuracy(answers[0], [answers[0]] * 4 + answers[4:], mode) == 1


@given(texts, texts, st.integers(0, 10))
def test_clean_accuracy_sees_normalized_answers_only(mine: str, theirs: str, matches: int) -> None:
    answers = [mine] * matches + [theirs] * (10 - matches)
    normalized = [normalize_answer(answer, "clean") for answer in answers]
    accuracy = vqa_accuracy(mine, answers, "clean")
    assert accuracy == vqa_accuracy(normalize_answer(mine, "clean"), normalized, "clean")
    same = normalize_answer(mine, "clean") == normalize_answer(theirs, "clean")
    assert accuracy == ten_choose_nine(10 if same else matches)


@pytest.mark.parametrize("answers", [[], ["yes"] * 9, ["yes"] * 11, "0123456789"])
def test_not_ten_answers(answers: list[str]) -> None:
    with pytest.raises(ValueError, match="10 people"):
        vqa_accuracy("yes", answers)


@pytest.mark.parametrize("matches", [-1, 11])
def test_impossible_matches(matches: int) -> None:
    with pytest.raises(ValueError, match=str(matches)):
        ten_choose_nine(matches)


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="'strict'"):
        vqa_accuracy("yes", ["yes"] * 10, "strict")  # pyright: ignore[reportArgumentType]
