"""Statements, forms of questions, and the prior of answers."""

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import gates_of, make_row
from helpers.training import scene_row, write_dialogues

from dialog_gen.core.errors import UsageError
from dialog_gen.shapes.worlds import FIRST, SECOND, World
from dialog_train.asking import prior as prior_module
from dialog_train.asking.prior import AnswerPrior
from dialog_train.asking.questions import Form, fits, form_of, meaning
from dialog_train.asking.sentences import Sentences
from dialog_train.asking.statements import conjunction, negated, statement

# Question, answer, statement, its denial.
SENTENCES = [
    ("What color is the star?", "purple", "the star is purple", "the star is not purple"),
    ("What color is the car on the left?", "red", "the car on the left is red", "the car on the left is not red"),
    ("What shape is in the top right?", "square", "a square is in the top right", "a square is not in the top right"),
    ("What shape is in the corner?", "cross", "a cross is in the corner", "a cross is not in the corner"),
    ("Is there a red square?", "yes", "there is a red square", "there is no red square"),
    ("Is there a red square?", "No.", "there is no red square", "there is a red square"),
    ("Are there any people?", "yes", "there are people", "there are no people"),
    ("How many green objects are there?", "2", "there are 2 green objects", "there are not 2 green objects"),
    ("How many green objects are there?", "1", "there is 1 green object", "there is not 1 green object"),
    ("How many objects are there?", "0", "there are no objects", "there are objects"),
    (
        "How many people are wearing hats?",
        "3",
        "there are 3 people wearing hats",
        "there are not 3 people wearing hats",
    ),
    ("How many wheels does the bus have?", "4", "the bus has 4 wheels", "the bus does not have 4 wheels"),
    ("Is the yellow star small or large?", "large", "the yellow star is large", "the yellow star is not large"),
    ("Is it day or night?", "night", "it is night", "it is not night"),
    ("Is the man wearing a hat?", "no", "the man is not wearing a hat", "the man is wearing a hat"),
    ("Is the sky blue?", "yes", "the sky is blue", "the sky is not blue"),
    ("Is this a cat?", "no", "this is not a cat", "this is a cat"),
    ("Is the dog on the bed?", "yes", "the dog is on the bed", "the dog is not on the bed"),
    ("Does the man have a hat?", "yes", "the man has a hat", "the man does not have a hat"),
    ("Do the people look happy?", "no", "the people do not look happy", "the people look happy"),
    ("What is the man holding?", "a bat", "the man is holding a bat", "the man is not holding a bat"),
    ("What is the man doing?", "skiing", "the man is skiing", "the man is not skiing"),
    ("What's on the table?", "pizza", "pizza is on the table", "pizza is not on the table"),
    ("What does the stand sell?", "fruit", "the stand sells fruit", "the stand does not sell fruit"),
    ("What does the sign say?", "stop", "the sign says stop", "the sign does not say stop"),
    ("Is there no red circle?", "yes", "there is no red circle", "there is red circle"),
    ("Are there no dogs?", "no", "there are dogs", "there are no dogs"),
    ("Is the star left of the cross?", "yes", "the star is left of the cross", "the star is not left of the cross"),
    ("Is the dog next to the cat?", "no", "the dog is not next to the cat", "the dog is next to the cat"),
    ("Is the glass full of water?", "yes", "the glass is full of water", "the glass is not full of water"),
    ("Is the color of the car red?", "no", "the color of the car is not red", "the color of the car is red"),
    (
        "What texture does the green star have?",
        "striped",
        "the texture of the green star is striped",
        "the texture of the green star is not striped",
    ),
    ("Where is the cat?", "on the bed", "the cat is on the bed", "the cat is not on the bed"),
    ("Where is the star?", "top left", "the star is in the top left", "the star is not in the top left"),
    # Participles belong to the predicate.
    ("Was this photo taken at night?", "no", "this photo was not taken at night", "this photo was taken at night"),
    ("Where was this photo taken?", "zoo", "this photo was taken in the zoo", "this photo was not taken in the zoo"),
    ("What is the table made of?", "wood", "the table is made of wood", "the table is not made of wood"),
    ("Is the sitting man old?", "yes", "the sitting man is old", "the sitting man is not old"),
    ("Is the broken car red?", "yes", "the broken car is red", "the broken car is not red"),
    ("Is the man and woman happy?", "no", "the man and woman is not happy", "the man and woman is happy"),
    ("Is the shirt blue and white?", "yes", "the shirt is blue and white", "the shirt is not blue and white"),
    ("Could this be Paris?", "no", "this could not be Paris", "this could be Paris"),
    ("What is the weather like?", "sunny", "the weather is sunny", "the weather is not sunny"),
    ("Which side is the car on?", "left", "the car is on left", "the car is not on left"),
    # The answer stands after the verb.
    (
        "What is the man wearing on his head?",
        "a hat",
        "the man is wearing a hat on his head",
        "the man is not wearing a hat on his head",
    ),
    ("What is the man looking at?", "a bird", "the man is looking at a bird", "the man is not looking at a bird"),
    ("What color shirt is he wearing?", "blue", "he is wearing blue shirt", "he is not wearing blue shirt"),
    ("Is she wearing a hat or a cap?", "cap", "she is wearing cap", "she is not wearing cap"),
    ("Is the man on the left or right?", "left", "the man is on the left", "the man is not on the left"),
    # No double and no weaker negation.
    ("Is the cat not black?", "no", "the cat is black", "the cat is not black"),
    ("Isn't the cat black?", "no", "the cat is not black", "the cat is black"),
    ("Is anyone in the water?", "no", "no one is in the water", "someone is in the water"),
    ("Does anyone have a hat?", "no", "no one has a hat", "someone has a hat"),
    ("Are any of the people sitting?", "no", "none of the people are sitting", "some of the people are sitting"),
    ("Are all the lights on?", "no", "not all the lights are on", "all the lights are on"),
    ("Is there anything on the table?", "no", "there is nothing on the table", "there is something on the table"),
    ("Is there no one here?", "yes", "there is no one here", "there is someone here"),
    ("Is there only one dog?", "no", "there is not only one dog", "there is only one dog"),
    ("Are there two dogs?", "no", "there are not two dogs", "there are two dogs"),
    ("Are there many dogs?", "yes", "there are many dogs", "there are not many dogs"),
    # Counts.
    (
        "How many of the dogs are eating?",
        "0",
        "none of the dogs are eating",
        "some of the dogs are eating",
    ),
    ("How many feet does he have on it?", "1", "he has 1 foot on it", "he does not have 1 foot on it"),
    ("How many knives are there?", "1", "there is 1 knife", "there is not 1 knife"),
    ("How many slices of pizza are there?", "1", "there is 1 slice of pizza", "there is not 1 slice of pizza"),
    ("How many cookies are there?", "1", "there is 1 cookie", "there is not 1 cookie"),
    ("How many potatoes are there?", "1", "there is 1 potato", "there is not 1 potato"),
]


@pytest.mark.parametrize(("question", "answer", "said", "denied"), SENTENCES)
def test_statements(question: str, answer: str, said: str, denied: str) -> None:
    assert statement(question, answer) == said
    assert negated(question, answer) == denied


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("there is a star", "there is no red circle", "there is a star but no red circle"),
        ("there is no red circle", "There is a star.", "There is a star but no red circle"),
        ("there are dogs in the park", "there are people", "there are dogs in the park and people"),
        ("there is no star", "there is no circle", "there is neither star nor circle"),
        ("the star is red", "there is no circle", "the star is red and there is no circle"),
        ("The star is red.", "the sky is not blue", "The star is red and the sky is not blue"),
        # "There are three objects and two red objects" would be five.
        ("there are 3 objects", "there are 2 red objects", "there are 3 objects and there are 2 red objects"),
        ("there are two dogs", "there are no cats", "there are two dogs and there are no cats"),
        ("there are not 2 dogs", "there are cats", "there are not 2 dogs and there are cats"),
        ("there is no one outside", "there is a star", "there is no one outside and there is a star"),
        ("there is nobody", "there is a star", "there is nobody and there is a star"),
        ("there was a star", "there is a circle", "there was a star and there is a circle"),
    ],
)
def test_conjunctions(first: str, second: str, both: str) -> None:
    assert conjunction(first, second) == both


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        ("there is no red circle", "there is a star", "a star but no red circle"),
        ("there are dogs", "there are people", "dogs and people"),
        ("there is no star", "there is no circle", "neither star nor circle"),
        ("the star is red", "there is no circle", "the star is red and there is no circle"),
    ],
)
def test_conjunctions_as_captions(first: str, second: str, both: str) -> None:
    assert conjunction(first, second, phrase=True) == both


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Why is he sad?", "rain"),
        ("Is there a star?", "purple"),
        ("Is the cat black or white?", "no"),
        ("Is the cat black or white?", "yes"),
        ("What color is it?", "yes"),
        ("stars", "two"),
        ("", "yes"),
        ("What?", "x"),
        ("Is it?", ""),
        # "There are no dogs" is what the answer 0 says.
        ("How many dogs are there?", "no"),
        ("How many dogs are there?", "yes"),
        ("Must he stop?", "no"),
        ("Is der Hund braun?", "ja"),
    ],
)
def test_what_has_no_rule_stays_question_and_answer(question: str, answer: str) -> None:
    assert statement(question, answer) == f"{question} {answer}"
    assert negated(question, answer) in (None, "he must stop")


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("What is on the table?", "nothing", "nothing is on the table"),
        ("Who is in the photo?", "nobody", "nobody is in the photo"),
        ("How many of the dogs are eating?", "2", "2 of the dogs are eating"),
    ],
)
def test_what_a_rule_cannot_deny_is_not_denied(question: str, answer: str, said: str) -> None:
    assert statement(question, answer) == said
    assert negated(question, answer) is None


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("Is the man in the image wearing a hat?", "no", "the man is not wearing a hat"),
        ("In the image, is there a dog?", "yes", "there is a dog"),
        ("Is the man in the picture frame smiling?", "yes", "the man in the picture frame is smiling"),
        ("Is the man on the left holding a bat?", "no", "the man on the left is not holding a bat"),
        ("Is the cat next to the sitting man?", "yes", "the cat is next to the sitting man"),
        ("Is the cat in the living room?", "no", "the cat is not in the living room"),
        ("Is the man wearing a hat?", "Yes, he is wearing a hat.", "the man is wearing a hat"),
        ("Is the man wearing a hat?", '"No"', "the man is not wearing a hat"),
        ("Does this look like a zoo?", "yes", "this looks like a zoo"),
        ("How many people are there?", "There are two people.", "There are two people"),
        ("Where is the cat?", "The cat is on the bed.", "The cat is on the bed"),
        ("What color is the cat?", "not visible", "What color is the cat? not visible"),
        ("Is there a dog? If so, what color is it?", "yes", "Is there a dog? If so, what color is it? yes"),
        ("What is in the picture on the wall?", "a vase", "a vase is in the picture on the wall"),
        ("In the image, isn't the cat black?", "no", "the cat is not black"),
        ("In the image, what's the man doing?", "surfing", "the man is surfing"),
        ("Is the truck in a busy parking area?", "yes", "the truck is in a busy parking area"),
        ("Who is holding the bat?", "a man who is tall", "a man who is tall is holding the bat"),
        ("What is the man doing?", "He's surfing.", "He's surfing"),
        ("What are the people doing?", "Two men are playing.", "Two men are playing"),
        (
            "What brand is it?",
            "The brand is not visible in the image.",
            "What brand is it? The brand is not visible in the image.",
        ),
    ],
)
def test_answers_as_models_give_them(question: str, answer: str, said: str) -> None:
    assert statement(question, answer) == said


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is on the man's head?", "no hat"),
        ("Who is in the picture?", "no one"),
        ("Where is the cat?", "The cat is on the bed."),
    ],
)
def test_what_denies_or_is_a_sentence_is_not_denied(question: str, answer: str) -> None:
    assert negated(question, answer) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("30", "thirty"),
        ("1,000", "1000"),
        ("12", "a dozen"),
        ("2", "a couple"),
        ("nobody", "no one"),
        ("0", "none"),
        ("a man", "men"),
        ("two buses", "2 bus"),
        ("Yes, it is.", "yes"),
        ("yes there is", "yes"),
        ("nope", "no"),
        ("no dogs", "0 dogs"),
        ("nothing", "none"),
    ],
)
def test_meanings(one: str, other: str) -> None:
    assert meaning(one) == meaning(other)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many circles are there?", "red"),
        ("What color is the star?", "2"),
        ("What size is the star?", "yes"),
        ("Is the star red or blue?", "large"),
        ("Is there a star?", "red"),
    ],
)
def test_an_answer_that_does_not_fit_is_not_stated(question: str, answer: str) -> None:
    """ "There are red circles" may be true, but it does not say how many."""
    assert statement(question, answer) == f"{question} {answer}"
    assert negated(question, answer) is None
    generators = Sentences.of_triples([(question, right, f"So: {right}.") for right in ("3", "blue", "large", "yes")])
    assert generators.statement(question, answer) == f"{question} {answer}"


@pytest.mark.parametrize("world", [FIRST, SECOND], ids=lambda world: world.name)
def test_every_question_of_the_embedded_worlds_has_a_rule(world: World[Any]) -> None:
    scenes = [world.draw_scene("train", 0, n) for n in range(300)]
    asked = [one for n, scene in enumerate(scenes) for one in world.ask(scene, random.Random(n), 3)]
    assert {one.kind for one in asked} == set(world.question_kinds)
    for question, answer in {(one.question, one.answer) for one in asked}:
        told, denied = statement(question, answer), negated(question, answer)
        assert not told.startswith(question)
        assert denied not in (None, told)
        for sentence in (told, str(denied)):
            # One sentence with one verb: "the star left of is the cross" and "there is no no star" are none.
            assert re.fullmatch(r"(?:an? |the |there ).*\b(?:is|are)\b(?!.*\b(?:is|are)\b).+", sentence), sentence
            assert not re.search(r"\bno no\b|\bof (?:is|are)\b", sentence), sentence


@pytest.mark.parametrize(
    ("question", "form", "fitting", "others"),
    [
        ("Is there a dog or a cat?", "choice", ["yes", "no", "dog"], ["3", "purple"]),
        ("Is the star small or large?", "choice", ["small", "Large", "both"], ["blue", "2"]),
        ("Are they happy?", "yes/no", ["yes", "No."], ["happy", "1"]),
        ("Isn't the cat black?", "yes/no", ["yes"], ["black"]),
        ("Won\u2019t it rain?", "yes/no", ["no"], ["rain"]),
        ("Can't he swim or dive?", "choice", ["dive"], ["run"]),
        (
            "How many dogs?",
            "number",
            ["3", "two", "none", "lots", "a couple", "a group of dogs"],
            ["yes", "no", "brown"],
        ),
        ("What texture does it have?", "other", ["striped"], ["2", "no"]),
        (
            "What number is on it?",
            "other",
            ["No. 7", "101"],
            ["no", "I cannot say", "It is hard to tell."],
        ),
        (
            "What kind of plane is it?",
            "other",
            ["747", "unknown brand", "not possible to pass"],
            ["unknown", "it's unclear"],
        ),
        ("What color is it?", "other", ["red", "red and white"], ["yes", "2"]),
        ("What number is on the bus?", "other", ["2", "red"], ["no"]),
        ("", "other", ["red"], ["yes"]),
    ],
)
def test_answers_fit_the_form(question: str, form: Form, fitting: list[str], others: list[str]) -> None:
    assert form_of(question) == form
    assert [answer for answer in fitting + others if fits(question, answer)] == fitting


def test_prior_is_the_formula_over_kept_pairs(tmp_path: Path) -> None:
    rows = [scene_row(number) for number in range(40)]
    # A gate marks the first pair of every third row.
    for row in rows[::3]:
        row["gates"] = gates_of([["leak"], *[[] for _ in row["texts"][1:]]])
    prior = AnswerPrior.of_dataset(write_dialogues(tmp_path / "d", {"a": rows[:25], "b": rows[25:]}))
    kept = [
        (" ".join(pair["user"].lower().rstrip("?").split()[:2]), pair["assistant"].lower())
        for number, row in enumerate(rows)
        for place, pair in enumerate(row["texts"])
        if not (number % 3 == 0 and place == 0)
    ]
    answers = sorted({answer for _, answer in kept})
    assert prior.pairs == len(kept) < sum(len(row["texts"]) for row in rows)
    for kind in {kind for kind, _ in kept}:
        total = sum(1 for k, _ in kept if k == kind)
        wanted = [
            math.log((kept.count((kind, answer)) + 0.01) / (total + 0.01 * (len(answers) + 1)))
            for answer in [*answers, "never said"]
        ]
        found = prior.log_probabilities(f"{kind} xyz?", [*map(str.upper, answers), "never said"])
        assert found.tolist() == pytest.approx(wanted)
        assert sum(map(math.exp, found)) == pytest.approx(1)
        assert prior.answers(kind) == Counter(answer for k, answer in kept if k == kind)
    assert len(set(prior.log_probabilities("never asked so", answers))) == 1
    assert not prior.answers("never asked so")
    prior.save(tmp_path / "prior.json")
    again = AnswerPrior.load(tmp_path / "prior.json")
    assert (again.sha256, again.pairs) == (prior.sha256, prior.pairs)
    kind, total = next(iter(json.loads((tmp_path / "prior.json").read_text())["totals"].items()))
    text = (tmp_path / "prior.json").read_text()
    (tmp_path / "prior.json").write_text(text.replace(f'"{kind}": {total}', f'"{kind}": {total + 1}'))
    with pytest.raises(UsageError, match="is no answer prior: its checksum"):
        AnswerPrior.load(tmp_path / "prior.json")


def test_prior_of_some_images(tmp_path: Path) -> None:
    rows = [scene_row(number) for number in range(6)]
    data = write_dialogues(tmp_path / "d", {"a": rows})
    some = {row["image_sha256"] for row in rows[::2]}
    wanted = AnswerPrior.of_pairs((p["user"], p["assistant"]) for row in rows[::2] for p in row["texts"])
    assert AnswerPrior.of_dataset(data, uses=some.__contains__).sha256 == wanted.sha256
    assert AnswerPrior.of_dataset(data, most_pairs=4).pairs == 4


def test_rare_answers_are_forgotten_before_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_module, "_MOST_COUNTS", 100)
    prior = AnswerPrior.of_pairs(
        pair for n in range(500) for pair in (("Is it?", "yes" if n % 3 else "no"), ("What is it?", f"answer {n}"))
    )
    assert prior.answers("is it") == {"yes": 333, "no": 167}
    assert len(prior.answers("what is")) <= 100
    assert prior.pairs == 1000
    assert prior.log_probabilities("is it", ["yes"])[0] == pytest.approx(math.log(333 / 500), abs=1e-2)


def test_a_prior_of_nothing_is_refused(tmp_path: Path) -> None:
    row = make_row(0)
    row["gates"] = gates_of([["leak"]])
    with pytest.raises(UsageError, match="no question and answer to count: no pair is kept by the gates"):
        AnswerPrior.of_dataset(write_dialogues(tmp_path / "d", {"a": [row]}))
    kept = write_dialogues(tmp_path / "kept", {"a": [make_row(0)]})
    with pytest.raises(UsageError, match="to count: all images with kept pairs are held out"):
        AnswerPrior.of_dataset(kept, uses=lambda sha256: False)
    for content, why in (("{", "is no answer prior"), ('{"format": "x", "counts": {}, "totals": {}}', "format 'x'")):
        (tmp_path / "p.json").write_text(content)
        with pytest.raises(UsageError, match=why):
            AnswerPrior.load(tmp_path / "p.json")
    with pytest.raises(UsageError, match="cannot be read"):
        AnswerPrior.load(tmp_path / "none.json")
