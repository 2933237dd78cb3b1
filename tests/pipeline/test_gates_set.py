"""Scores by the whole dataset: yes-bias, and near-duplicates against all pairs of texts compared."""

import math
import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialog_gen.gates.base import Row, Scores, SetGate
from dialog_gen.gates.hash_collections import HashList, HashSet, index_in
from dialog_gen.gates.set_duplicate import SetDuplicate, SetDuplicateSettings
from dialog_gen.gates.yes_bias import YesBias, YesBiasSettings


def rows_of(answers: Sequence[str], question: str = "Is there a dog?", a_row: int = 2) -> list[dict[str, Any]]:
    """Rows of `a_row` pairs, the last one shorter."""
    pairs = [{"user": question, "assistant": answer} for answer in answers]
    return [{"image_id": f"image {i}", "texts": pairs[i : i + a_row]} for i in range(0, len(pairs), a_row)]


def scores_of(gate: SetGate[Any], rows: Sequence[Row], batch: int = 7) -> dict[str, Scores]:
    """image_id -> scores; surveyed and scored in batches."""
    for start in range(0, len(rows), batch):
        gate.survey(rows[start : start + batch])
    gate.settle()
    return dict(zip((row["image_id"] for row in rows), gate.score(rows), strict=True))


def flat(scores: dict[str, Scores]) -> Scores:
    return [score for of_row in scores.values() for score in of_row]


def small_yes_bias(**settings: Any) -> YesBias:
    return YesBias(YesBiasSettings(least_answers=1, **settings), {})


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["yes", "Yes, it is.", "no", "YES!", "a dog"], [1 / 2, 2 / 3, 3 / 4]),
        (["no", "No, there is none."], []),
        (["yes", "yesterday", "nobody", "maybe yes"], [1]),
        (["2", ""], []),
    ],
)
def test_a_yes_scores_the_share_with_it_and_those_before(answers: list[str], expected: list[float]) -> None:
    scores = flat(scores_of(small_yes_bias(), rows_of(answers)))
    said_yes = [answer.lower().split(",")[0].strip("!") == "yes" for answer in answers]
    assert [score is not None for score in scores] == said_yes
    assert sorted(score for score in scores if score is not None) == pytest.approx(expected)


@pytest.mark.parametrize("most", [0.3, 0.5, 0.6, 0.75])
@pytest.mark.parametrize(("yeses", "noes"), [(90, 10), (10, 90), (30, 20), (60, 40), (5, 0)])
def test_as_many_yeses_are_marked_as_bring_the_share_to_the_limit(yeses: int, noes: int, most: float) -> None:
    settings = YesBiasSettings(least_answers=1, max=most)
    answers = ["yes"] * yeses + ["no"] * noes
    random.Random(0).shuffle(answers)
    scores = flat(scores_of(YesBias(settings, {}), rows_of(answers)))
    kept = yeses - sum(settings.is_violated(score) for score in scores)
    assert kept == min(yeses, math.floor(most * noes / (1 - most) + 1e-9))


def test_too_few_answers_tell_no_bias() -> None:
    answers = ["yes"] * 99
    assert flat(scores_of(YesBias(YesBiasSettings(), {}), rows_of(answers))) == [None] * 99
    assert None not in flat(scores_of(YesBias(YesBiasSettings(), {}), rows_of([*answers, "yes"])))


def test_the_words_for_yes_and_no_can_be_told() -> None:
    scores = flat(scores_of(small_yes_bias(yes=("ja", "doch"), no=("nein",)), rows_of(["Ja.", "nein", "Doch!", "yes"])))
    assert sorted(score for score in scores if score is not None) == [1 / 2, 2 / 3]


_LETTERS = random.Random(0)
WORDS = ["".join(_LETTERS.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(5000)]


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def with_changes(text: str, changes: int, rng: random.Random) -> str:
    said = text.split()
    for place in rng.sample(range(len(said)), changes):
        said[place] = rng.choice(WORDS)
    return " ".join(said)


@pytest.mark.parametrize("limit", [0.6, 0.8, 0.9])
def test_near_duplicates_are_those_that_comparing_all_texts_finds(limit: float) -> None:
    rng = random.Random(0)
    texts: list[str] = []
    for family in range(150):
        texts.append(sentence(rng, 30))
        texts.append(with_changes(texts[-1], family % 12, rng))
    scorer = SetDuplicate(SetDuplicateSettings(similarity=limit), {})
    places = flat(scores_of(scorer, rows_of(texts, question="the", a_row=1)))
    sets = [{f"the {text}"[i : i + 3] for i in range(len(text) + 2)} for text in texts]
    near, far = list[bool](), list[bool]()
    for (i, first), (j, second) in combinations(enumerate(sets), 2):
        similarity = len(first & second) / len(first | second)
        if i // 2 == j // 2:
            assert sorted([places[i] or 0, places[j] or 0]) in ([1, 1], [1, 2])
            found = places[i] != places[j]
            near += [found] if similarity >= limit + 0.08 else []
            far += [found] if similarity < limit - 0.08 else []
        else:
            assert similarity < limit - 0.4  # such texts are never joined: a place above 2 would tell
    assert len(near) >= 10
    assert len(far) >= 30
    assert sum(near) / len(near) >= 0.95
    assert sum(far) <= 0.02 * len(far)


def test_places_among_copies() -> None:
    rng = random.Random(1)
    texts = [sentence(rng, 20) for _ in range(4)]
    copies = [texts[0]] * 5 + [texts[1].upper() + "!", texts[1] + ".", texts[2], texts[3]]
    rng.shuffle(copies)
    places = flat(scores_of(SetDuplicate(SetDuplicateSettings(), {}), rows_of(copies)))
    by_text: dict[str, list[float | None]] = {}
    for copy, place in zip(copies, places, strict=True):
        by_text.setdefault(copy.lower().strip("!."), []).append(place)
    assert [sorted(by_text[text], key=str) for text in texts] == [[1, 2, 3, 4, 5], [1, 2], [1], [1]]


def test_short_pairs_are_alike_by_necessity() -> None:
    rows = rows_of(["yes"] * 3 + ["one two three four five six seven eight"] * 2)  # after the question's four words
    assert flat(scores_of(SetDuplicate(SetDuplicateSettings(), {}), rows))[:3] == [None] * 3
    assert flat(scores_of(SetDuplicate(SetDuplicateSettings(), {}), rows))[3:] in ([1, 2], [2, 1])


@pytest.mark.parametrize("scorer", [small_yes_bias, lambda: SetDuplicate(SetDuplicateSettings(least_words=1), {})])
@pytest.mark.parametrize("rows", [[], [{"image_id": "a", "texts": []}]])
def test_nothing_to_survey(scorer: Any, rows: list[Row]) -> None:
    assert flat(scores_of(scorer(), rows)) == []


@pytest.mark.parametrize("make", [small_yes_bias, lambda: SetDuplicate(SetDuplicateSettings(), {})])
def test_the_order_of_rows_changes_nothing(make: Any) -> None:
    rng = random.Random(2)
    answers = ["yes " + sentence(rng, 20) for _ in range(10)] * 3 + ["no " + sentence(rng, 20)] * 9
    rng.shuffle(answers)
    rows = rows_of(answers)
    one, other = make(), make()
    expected = scores_of(one, rows)
    rng.shuffle(rows)
    assert scores_of(other, rows, batch=3) == expected
    assert len({score for score in flat(expected) if score is not None}) > 2


@pytest.mark.parametrize("make", [small_yes_bias, lambda: SetDuplicate(SetDuplicateSettings(), {})])
def test_what_a_survey_knows_is_told_by_its_hash(make: Any) -> None:
    def settled(rows: Sequence[Row]) -> str:
        scorer = make()
        scorer.survey(rows)
        return scorer.settle()

    rows = rows_of(["yes, " + sentence(random.Random(3), 20)] * 4 + ["no"])
    assert settled(rows) == settled(rows[::-1]) != settled(rows[1:])
    # What is new but changes no score leaves the shards that are there as they are.
    other = {"user": "What is it?", "assistant": sentence(random.Random(4), 20)}
    assert settled([*rows, {"image_id": "other", "texts": [other]}]) == settled(rows)


@given(values=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5)), merge_at=st.integers(1, 5))
def test_a_set_of_hashes(values: list[int], merge_at: int) -> None:
    hashes, known = HashSet(merge_at), set[int]()
    for value in values:
        assert hashes.add(value) == (value not in known)
        known.add(value)


@given(values=st.lists(st.integers(0, 2**64 - 1)))
def test_a_list_of_hashes(values: list[int]) -> None:
    hashes = HashList()
    for value in values:
        hashes.append(value)
    taken = np.sort(hashes.take())
    assert taken.tolist() == sorted(values)
    assert hashes.take().tolist() == []
    for value in [*values, 0, 2**64 - 1]:
        index = index_in(taken, value)
        assert (index is not None) == (value in values)
        assert index is None or taken[index] == value
