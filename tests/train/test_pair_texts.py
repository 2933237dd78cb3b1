"""The texts of candidates: which answers are foils, how often, and in which words."""

import pickle
import random
import re
from collections import Counter
from itertools import chain
from typing import Any

import pytest

from dialog_gen.shapes.worlds import FIRST, SECOND, World
from dialog_train.asking.prior import AnswerPrior
from dialog_train.asking.statements import negated, statement
from dialog_train.config import CandidateFormat
from dialog_train.data.pair_texts import Candidates, OneText

COLORS = {"red": 50, "green": 25, "blue": 15, "light red": 5, "yellow": 5}
COLOR_PAIRS = [("What color is it?", color) for color, count in COLORS.items() for _ in range(count)]
STAR_PAIRS = [("Is there a star?", answer) for answer in ["yes"] * 30 + ["no"] * 10]
PRIOR = AnswerPrior.of_pairs(COLOR_PAIRS + STAR_PAIRS)


def candidates(
    foils: int = 3,
    denials: bool = False,
    prior: AnswerPrior = PRIOR,
    text_format: CandidateFormat = "question_answer",
    conjunctions: bool = False,
) -> Candidates:
    return Candidates(prior=prior, text_format=text_format, foils=foils, denials=denials, conjunctions=conjunctions)


def pair(question: str, answer: str) -> dict[str, str]:
    return {"user": question, "assistant": answer}


def test_one_text_of_each_pair() -> None:
    one = OneText("labelled", "Question: {user} Answer: {assistant}")
    assert one("0", [pair("What?", "This.")]) == ["Question: What? Answer: This."]
    assert (one.per_pair, one.config, one.shares([])) == (1, {"dialogue_format": "labelled"}, None)


def test_the_right_text_is_first_and_foils_answer_the_same_type_of_question() -> None:
    texts = candidates()("a", [pair("What color is the star?", "Green.")])
    assert texts[0] == "What color is the star? green"
    assert {text.removeprefix("What color is the star? ") for text in texts[1:]} < COLORS.keys() - {"green"}
    assert len(set(texts)) == 4


def test_no_foil_may_be_true_too() -> None:
    pairs = [pair("What color is it?", "red"), pair("What color is it", "blue"), pair("What color is that?", "green")]
    for number in range(50):
        texts = candidates()(str(number), pairs)
        # "light red" is nested with "red", "blue" answers the same question; the last question has other answers.
        assert not {text.rsplit("it? ", 1)[-1] for text in texts[1:4]} & {"red", "light red", "blue"}
    third = {text for number in range(50) for text in candidates()(str(number), pairs)[9:]}
    assert {"What color is that? red", "What color is that? blue"} <= third


@pytest.mark.parametrize(
    ("question", "right", "same"),
    [
        ("How many dogs are there?", "2", "two"),
        ("How many dogs are there?", "none", "0"),
        ("How many dogs are there?", "zero", "none"),
        ("What is on the table?", "A cup.", "the cups"),
        ("What color is it?", "grey", "gray"),
        ("What is it?", "Two dogs", "2 dogs"),
    ],
)
def test_no_foil_says_the_same_in_other_words(question: str, right: str, same: str) -> None:
    prior = AnswerPrior.of_pairs([(question, answer) for answer in (right, same, "3", "other", "yes")])
    made = candidates(foils=4, prior=prior, text_format="statement")
    for number in range(20):
        own, *foils = made(str(number), [pair(question, right)])
        assert statement(question, same) not in foils
        assert own not in foils
        assert sum(map(bool, foils)) == 3


def test_foils_are_as_frequent_as_answers() -> None:
    drawn = Counter[str]()
    for number in range(4000):
        drawn.update(candidates(foils=1).draw("What color is it?", ["yellow"], random.Random(number), stated=True))
    total = sum(COLORS.values()) - COLORS["yellow"]
    expected = {color: count / total for color, count in COLORS.items() if color != "yellow"}
    assert {color: count / 4000 for color, count in drawn.items()} == pytest.approx(expected, abs=0.03)


def test_answers_to_other_questions_fill_up() -> None:
    (right, first, *others) = candidates(foils=4)("a", [pair("Is there a circle?", "yes")])
    assert (right, first) == ("Is there a circle? yes", "Is there a circle? no")
    assert {text.removeprefix("Is there a circle? ") for text in others} <= COLORS.keys()
    assert len(set(others)) == 3


def test_statements_of_answers_to_other_questions_are_no_foils() -> None:
    # "The circle is red" may be true, whatever the circle's size.
    prior = AnswerPrior.of_pairs(COLOR_PAIRS + STAR_PAIRS + [("What size is it?", size) for size in ("small", "large")])
    question, seen = "What size is the circle?", set[str]()
    for number in range(50):
        texts = candidates(foils=4, prior=prior, text_format="statement")(str(number), [pair(question, "small")])
        assert texts[:2] == ["the circle is small", "the circle is large"]
        assert sorted(texts[2:]) == ["", f"{question} no", f"{question} yes"]
        texts = candidates(foils=4, prior=prior)(str(number), [pair(question, "small")])
        assert {text.removeprefix(f"{question} ") for text in texts[2:]} < {*COLORS, "yes", "no"}
        # Unless they are asked for.
        made = Candidates(prior=prior, text_format="statement", foils=4, denials=False, fill_up="all")
        texts = made(str(number), [pair(question, "small")])
        assert texts[:2] == ["the circle is small", "the circle is large"]
        seen |= {*texts[2:]}
    assert {f"the circle is {color}" for color in COLORS} <= seen
    # A type of question that was never counted.
    drawn = candidates(prior=prior, text_format="statement").draw("Why is it?", [], random.Random(0), stated=True)
    assert set(drawn) == {"yes", "no"}


MIXED = [
    *[("Is there a dog or a cat?", answer) for answer in ("dog", "cat", "yes", "no")],
    *[("Is there a dog?", answer) for answer in ("yes", "no", "black")],
    *[("How many dogs are there?", answer) for answer in ("0", "none", "zero", "2", "3", "many", "a few", "black")],
    *[("What color is it?", answer) for answer in ("red", "blue", "not visible", "It is red.", "yes")],
    *[("What is it?", answer) for answer in ("a group of people", "some snow")],
]


@pytest.mark.parametrize(
    ("question", "right", "foils"),
    [
        # A yes does not exclude a cat.
        ("Is there a dog or a cat?", "dog", {"cat"}),
        ("Is there a dog or a cat?", "yes", {"no"}),
        ("Is there a dog?", "Yes, there is.", {"no"}),
        # Nor do some exclude a few, and 2 many.
        ("How many dogs are there?", "2", {"0", "3"}),
        ("How many dogs are there?", "many", set()),
        ("How many dogs are there?", "more than 2", set()),
        ("How many dogs are there?", "There are no dogs.", {"2", "3"}),
        ("Is there a dog or a cat?", "both", set()),
        # What does not fit is not known to exclude anything.
        ("Is there a dog?", "The dog is asleep", set()),
        ("What color is it?", "not visible", set()),
        ("What color is it?", "red", {"blue"}),
        # An amount is one thing where nobody asks how many.
        ("What is it?", "a group of people", {"some snow"}),
    ],
)
def test_foils_of_the_same_type_exclude_the_right_answer(question: str, right: str, foils: set[str]) -> None:
    made = candidates(foils=9, prior=AnswerPrior.of_pairs(MIXED), text_format="statement")
    for number in range(20):
        own, *found = made(str(number), [pair(question, right)])
        stated = {foil: statement(question, foil) for foil in foils}
        assert {text for text in found if text and not text.startswith(question)} <= {*stated.values()}
        assert own
        # "none" and "zero" say what "0" does.
        same = [text for text in found if text.removeprefix(f"{question} ") in foils or text in stated.values()]
        assert len(same) == len(foils)


@pytest.mark.parametrize("stated", [True, False])
def test_answers_that_may_be_meant_are_not_among_those_that_do_not_fit(stated: bool) -> None:
    made = candidates(foils=9, prior=AnswerPrior.of_pairs(MIXED))
    draws = [made.draw("Is there a dog?", ["no"], random.Random(number), stated=stated) for number in range(20)]
    # "None" and "0" say no, "many" and "dog" may say yes.
    assert {*chain.from_iterable(draws)} == {"yes", "2", "3", "red", "blue", "cat", "black"}


def test_half_of_the_pairs_are_statements() -> None:
    both, stated, asked = (
        candidates(foils=2, text_format=text_format, denials=True, conjunctions=True)
        for text_format in ("both", "statement", "question_answer")
    )
    pairs = [pair("What color is the star?", "red"), pair("Is there a star?", "yes")]
    forms = Counter[bool]()
    for number in range(100):
        found = [made(str(number), pairs) for made in (both, stated, asked)]
        for start in (0, both.per_pair):
            texts, *ways = (texts[start : start + 5] for texts in found)
            assert texts in ways
            forms[texts == ways[0]] += 1
        # Two statements can be joined, no statement with a question.
        joined = found[0][5:9]
        assert joined == (found[1][5:9] if found[0][0] == found[1][0] and found[0][9] == found[1][9] else [""] * 4)
    assert 70 < forms[True] < 130
    assert both.uses_statements


def test_an_answer_of_marks_takes_no_foils_from_another() -> None:
    texts = candidates()("a", [pair("What color is it?", "red"), pair("What color is it?", "...")])
    assert all(texts[:4])


def test_the_order_in_which_answers_were_counted_does_not_matter() -> None:
    colors = [("What color is it?", color) for color in ("red", "blue", "pink", "green", "gray")]
    one, other = (AnswerPrior.of_pairs(pairs) for pairs in (colors, colors[::-1]))
    assert one.sha256 == other.sha256
    for number in range(10):
        texts = [candidates(prior=prior)(str(number), [pair(*colors[0])]) for prior in (one, other)]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("world", [FIRST, SECOND], ids=lambda world: world.name)
def test_no_foil_is_true_of_the_image(world: World[Any]) -> None:
    """Foils of the worlds' own dialogues, judged by their scenes: none says what is so."""
    scenes = [world.draw_scene("train", 0, n) for n in range(400)]
    asked = [[(one.question, one.answer) for one in world.ask(s, random.Random(n), 3)] for n, s in enumerate(scenes)]
    made = candidates(foils=7, prior=AnswerPrior.of_pairs(chain.from_iterable(asked)), text_format="statement")
    judged, not_stated = Counter[bool](), 0
    for number, (scene, pairs) in enumerate(zip(scenes, asked, strict=True)):
        for question, _right in pairs:
            taken = [answer for other, answer in pairs if other == question]
            thing = re.search(r"the (?:\w+ ){1,2}(?=is|have)|the \w+ \w+(?=\?)", question)
            for foil in made.draw(question, taken, random.Random(number), stated=True):
                assert not world.judge(scene, question, foil)
                if statement(question, foil).startswith(question):
                    not_stated += 1
                    continue
                # Whether it is another attribute of the thing: "the star is large", for "What color is the star?".
                for other in ("What color is {}?", "What size is {}?", "What texture does {} have?", "Where is {}?"):
                    if thing:
                        judged[world.judge(scene, other.format(thing[0].strip()), foil)] += 1
    assert set(judged) == {False}
    assert judged[False] > 500
    assert not_stated > 500


def test_texts_that_do_not_exist_are_empty() -> None:
    few = AnswerPrior.of_pairs([("Is it?", "yes"), ("Is it?", "no")])
    made = candidates(foils=3, denials=True, prior=few)
    assert made("a", [pair("Is it red?", "yes")])[:4] == ["Is it red? yes", "Is it red? no", "", ""]
    alone = candidates(foils=1, denials=True, prior=AnswerPrior.of_pairs([("Is it?", "yes")]))
    assert alone("a", [pair("Is it red?", "yes")]) == ["Is it red? yes", "", negated("Is it red?", "yes"), ""]
    assert len(candidates(denials=True)("a", [pair("Why?", "because")] * 2)) == 12


def test_an_answer_of_marks_only_has_no_texts() -> None:
    made = candidates(foils=2, denials=True, conjunctions=True)
    texts = made("a", [pair("Is there a star?", "..."), pair("What color is it?", "red")])
    assert texts[:9] == [""] * 9
    # Nor is it said together with another.
    assert texts[9].endswith("red")
    assert texts[14:] == [""] * 4


def test_statements_and_denials() -> None:
    made = candidates(foils=2, denials=True, text_format="statement")
    texts = made("a", [pair("What color is the star?", "red")])
    question = "What color is the star?"
    answers = [text.removeprefix("the star is ") for text in texts[:3]]
    assert answers[0] == "red"
    assert texts[:3] == [statement(question, answer) for answer in answers]
    assert texts[3:] == [negated(question, answer) for answer in answers[:2]]


def test_conjunctions_of_existence_are_a_choice_among_all_four() -> None:
    made = candidates(foils=1, conjunctions=True, text_format="statement")
    assert made.per_pair == 6
    first, second = (
        ["a star but no circle", "a star and circle", "neither star nor circle", "circle but no star"],
        ["a star but no circle", "neither circle nor star", "circle and a star", "circle but no star"],
    )
    forms = Counter[str]()
    for number in range(40):
        texts = made(str(number), [pair("Is there a star?", "yes"), pair("Is there any circle?", "no")])
        for found, told in ((texts[2:6], first), (texts[8:], second)):
            # As sentences or as captions, but all four alike.
            form = "there is " if found[0].startswith("there") else ""
            assert found == [form + text for text in told]
            forms[form] += 1
    assert min(forms[""], forms["there is "]) > 20


def test_conjunctions_prefer_a_pair_of_the_same_type_and_wrong_answers_of_the_right_form() -> None:
    made = candidates(foils=2, conjunctions=True)
    pairs = [pair("What color is it?", "red"), pair("Is there a star?", "no"), pair("What color is that?", "green")]
    for number in range(10):
        first, star, last = (made(str(number), pairs)[start + 3 : start + 7] for start in (0, 7, 14))
        assert first[0] == "What color is it? red What color is that? green"
        assert last[0] == "What color is that? green What color is it? red"
        # The other foil is a color: "Is there a star? red".
        assert {text.split("star? ")[1].split(" What")[0] for text in star} == {"yes", "no"}
        assert len(set(star)) == 4
    # The star has no other of its type, and takes any.
    assert {made(str(number), pairs)[10].split("? ")[1] for number in range(20)} == {
        "no What color is it",
        "no What color is that",
    }


@pytest.mark.parametrize(
    "pairs",
    [
        [("Is there a star?", "yes")],
        [("Is there a star?", "yes"), ("Is there a star", "Yes.")],
        [("Is there a star?", "yes"), ("Is there no star?", "no")],
        [("Is there a star?", "yes"), ("What color is it?", "red, light red, green, blue, yellow")],
    ],
)
def test_without_another_pair_there_are_no_conjunctions(pairs: list[tuple[str, str]]) -> None:
    texts = candidates(foils=1, conjunctions=True, text_format="statement")("a", [pair(*of) for of in pairs])
    assert texts[:2] == ["there is a star", "there is no star"]
    assert texts[2:6] == [""] * 4


def test_image_and_number_determine_the_foils() -> None:
    pairs = [pair("What color is it?", "red"), pair("What color is that?", "red")]
    made, again = candidates(foils=2), pickle.loads(pickle.dumps(candidates(foils=2)))
    assert [made(str(n), pairs) for n in range(20)] == [again(str(n), pairs) for n in reversed(range(20))][::-1]
    assert len({tuple(made(str(n), pairs)) for n in range(20)}) > 5


def test_shares_of_types() -> None:
    assert candidates().shares([pair("What color?", "red"), pair("Is there one?", "no"), pair("Why?", "so")]) == [
        100 / 140,
        40 / 140,
        0,
    ]
