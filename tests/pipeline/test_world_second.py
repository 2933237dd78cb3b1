"""The world `shapes-2`: all its texts are compared with a second reading of its pixels (`helpers.second_world`)."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
from helpers.second_world import NUMBERS, RELATION, WORD, background, reply, seen, statement

from dialog_gen.shapes.second import captions
from dialog_gen.shapes.second.choices import CHOICE_KINDS, choices
from dialog_gen.shapes.second.questions import ANSWER_GROUPS, QUESTION_KINDS, ask, judge
from dialog_gen.shapes.second.render import render_png
from dialog_gen.shapes.second.scenes import (
    CELLS,
    COLORS,
    HELD_OUT,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    Split,
    draw_scene,
    split_of,
    swapped,
)

SPLITS = get_args(Split)
SCENES = [draw_scene(split, 0, i) for split in ("train", "compositional") for i in range(120)]
ANSWERS = [answer for group in ANSWER_GROUPS for answer in group]


# --- scenes


def test_a_scene_is_a_function_of_split_seed_and_index() -> None:
    assert draw_scene("val", 3, 7) == draw_scene("val", 3, 7)
    assert len({draw_scene(split, seed, 7) for split in SPLITS for seed in (3, 4)}) == 8


def test_scenes_are_well_formed() -> None:
    for s in SCENES:
        cells = [CELLS.index(o.cell) for o in s.objects]
        assert 1 <= len(cells) <= MAX_OBJECTS
        assert cells == sorted(cells)
        assert max(Counter(cells).values()) <= 2
        assert Scene.from_json(s.to_json()) == s


def test_counts_go_to_five_and_overlaps_are_common() -> None:
    counts = Counter(len(s.objects) for s in SCENES)
    assert all(counts[n] > 24 for n in range(1, MAX_OBJECTS + 1))
    alike = Counter(max(Counter(o.color for o in s.objects).values()) for s in SCENES)
    assert all(alike[n] > 2 for n in (2, 3, 4))
    assert 0.1 < sum(any(f.in_front_of for f in seen(s)) for s in SCENES) / len(SCENES) < 0.5


def test_splits_are_disjoint_and_hold_combinations_out() -> None:
    for split in SPLITS:
        for i in range(200):
            s = draw_scene(split, 1, i)
            pairs = {(word, o.shape) for o in s.objects for word in (o.color, o.texture)}
            assert bool(pairs & HELD_OUT) == (split == "compositional")
            moved = replace(s.objects[0], offset_px=(0, 0))
            assert split_of(s) == split_of(replace(s, objects=(moved, *s.objects[1:]))) == split


def test_every_word_and_every_other_combination_is_in_the_train_split() -> None:
    objects = [o for i in range(3000) for o in draw_scene("train", 0, i).objects]
    combined = {(word, o.shape) for o in objects for word in (o.color, o.texture)}
    assert combined == {(word, shape) for word in (*COLORS, *TEXTURES) for shape in SHAPES} - HELD_OUT
    assert {o.size for o in objects} == set(SIZES)
    assert {o.cell for o in objects} == set(CELLS)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"train, val, test, compositional.*'dev'"):
        draw_scene("dev", 0, 0)


def test_a_swapped_scene_differs_in_one_attribute_of_two_objects() -> None:
    made = 0
    for i, s in enumerate(SCENES):
        if (other := swapped(s, random.Random(i))) is None:
            continue
        made += 1
        assert split_of(other) == split_of(s)
        assert other.background == s.background
        for name in ("shape", "color", "texture", "size", "cell"):
            assert Counter(getattr(o, name) for o in other.objects) == Counter(getattr(o, name) for o in s.objects)
        looks = [{(f.shape, f.color, f.texture, f.size, f.cell) for f in seen(which)} for which in (s, other)]
        assert len(looks[0] - looks[1]) in (1, 2)
    assert made > 0.6 * len(SCENES)


# --- pixels


def test_all_that_a_scene_says_is_seen() -> None:
    for s in SCENES:
        assert [(f.shape, f.color, f.texture, f.size, f.cell) for f in seen(s)] == [
            (o.shape, o.color, o.texture, o.size, o.cell) for o in s.objects
        ], s
        assert background(s) == s.background


def test_of_two_in_a_cell_the_later_hides_a_part_of_the_earlier_and_no_others_touch() -> None:
    for s in SCENES:
        found = seen(s)
        for i, f in enumerate(found):
            assert f.in_front_of == {j for j in range(i) if s.objects[j].cell == s.objects[i].cell}, s


def test_a_hidden_object_stays_visible() -> None:
    hidden = [f.visible for s in SCENES for f in seen(s) if f.visible < 0.99]
    assert len(hidden) > 20
    assert min(hidden) > 0.2
    assert sorted(hidden)[len(hidden) // 10] > 0.4


def test_render_is_deterministic_and_tells_all_objects_apart() -> None:
    assert render_png(SCENES[0]) == render_png(Scene.from_json(SCENES[0].to_json()))
    looks = [
        SceneObject(shape=shape, color=color, texture=texture, size=size, cell="center", offset_px=(0, 0))
        for shape in SHAPES
        for color in COLORS
        for texture in TEXTURES
        for size in SIZES
    ]
    assert len({render_png(Scene(objects=(o,), background="white")) for o in looks}) == len(looks)


# --- captions


def test_captions_of_annotators_are_true_and_name_all() -> None:
    for i, s in enumerate(SCENES):
        texts = captions.retrieval_captions(s, random.Random(i))
        assert len(set(texts)) == 5
        for text in texts:
            assert statement(s, text), (s, text)
            assert len(re.findall("|".join(SHAPES), text)) >= len(s.objects)


def test_negated_captions_deny_what_is_not_there() -> None:
    for i, s in enumerate(SCENES):
        for text in captions.negated_captions(s, random.Random(i)):
            assert ", but no " in text
            assert statement(s, text), (s, text)


def test_web_captions_say_nothing_untrue_and_deny_nothing() -> None:
    told: Counter[str] = Counter()
    for i, s in enumerate(SCENES):
        text = captions.web_caption(s, random.Random(i))
        assert text == captions.web_caption(s, random.Random(i))
        assert not {"no", "not", "without", "neither"} & set(text.split())
        told.update(re.findall(rf"{RELATION}|\b(?:{'|'.join(NUMBERS[1:])})\b|in the", text))
        core = re.sub(r" icon \| free vector| clipart, flat design| vector art| - royalty free", "", text)
        core = re.sub(r"^(stock photo of|wallpaper with|set of|download) ", "", core)
        assert core.startswith("abstract geometric") or statement(s, core), (s, text)
    assert all(told[word] for word in ("left of", "above", "in front of", "three", "in the"))


def test_only_compositional_texts_name_held_out_combinations() -> None:
    for split in SPLITS:
        named: set[tuple[str, str]] = set()
        for i in range(150):
            s, rng = draw_scene(split, 2, i), random.Random(i)
            texts = [*captions.negated_captions(s, rng), captions.web_caption(s, rng)]
            texts += [question.question for question in ask(s, rng, 8)]
            texts += [text for choice in choices(s, rng) for text in choice.captions]
            named |= {pair for text in texts for pair in re.findall(rf"({'|'.join(WORD)}) ({'|'.join(SHAPES)})", text)}
        assert bool(named & HELD_OUT) == (split == "compositional"), (split, named & HELD_OUT)


def test_the_class_is_the_only_large_object() -> None:
    for s in SCENES:
        large = [f"{f.color} {f.shape}" for f in seen(s) if f.size == "large"]
        assert captions.class_of(s) == (large[0] if len(large) == 1 else None)


# --- questions


def test_every_kind_is_asked_and_the_answers_are_seen() -> None:
    kinds: set[str] = set()
    for i, s in enumerate(SCENES):
        for q in ask(s, random.Random(i), 8):
            kinds.add(q.kind)
            assert reply(s, q.question) == q.answer, (s, q)
            assert [a for a in ANSWERS if judge(s, q.question, a)] == [q.answer]
    assert kinds == set(QUESTION_KINDS)


def test_questions_about_other_scenes_are_judged_as_a_second_reading_says() -> None:
    rng, ill_posed = random.Random(0), 0
    for s, other in pairwise(SCENES):
        for q in ask(s, rng, 8):
            answer = reply(other, q.question)
            assert [a for a in ANSWERS if judge(other, q.question, a)] == ([answer] if answer else []), (other, q)
            ill_posed += answer is None
    assert ill_posed > 100


def test_yes_and_no_are_balanced() -> None:
    said: dict[str, Counter[str]] = {"exists": Counter(), "absent": Counter(), "related": Counter()}
    for i, s in enumerate(SCENES * 4):
        for q in ask(s, random.Random(i), 8):
            if q.kind in said:
                said[q.kind][q.answer] += 1
    for kind, counts in said.items():
        assert 0.4 < counts["yes"] / counts.total() < 0.6, kind


def test_no_answer_is_in_two_groups() -> None:
    assert len(ANSWERS) == len(set(ANSWERS))


@pytest.mark.parametrize(
    ("question", "answer"), [("Who drew this?", "yes"), ("", ""), ("How many dogs are there?", "0")]
)
def test_unknown_questions(question: str, answer: str) -> None:
    assert not judge(SCENES[0], question, answer)


# --- choices


def test_of_each_choice_only_the_first_caption_is_true() -> None:
    kinds: Counter[str] = Counter()
    for i, s in enumerate(SCENES):
        for choice in choices(s, random.Random(i)):
            kinds[choice.kind] += 1
            right, *wrong = choice.captions
            assert len(set(choice.captions)) == len(choice.captions) >= 2
            assert statement(s, right), (s, choice)
            assert not [text for text in wrong if statement(s, text)], (s, choice)
    assert set(kinds) == set(CHOICE_KINDS)
    assert min(kinds.values()) > 15


def test_swapped_captions_have_the_same_words() -> None:
    for i, s in enumerate(SCENES):
        for choice in choices(s, random.Random(i)):
            if choice.kind.endswith("_swap"):
                right, wrong = (sorted(re.sub(r"\ban\b", "a", text).split()) for text in choice.captions)
                assert right == wrong


def test_the_form_of_a_negated_caption_does_not_tell_whether_it_is_right() -> None:
    forms = Counter(
        next((form for form in ("but no", "neither") if form in choice.captions[0]), "and")
        for i, s in enumerate(SCENES * 4)
        for choice in choices(s, random.Random(i))
        if choice.kind == "negation_hybrid"
    )
    shares = {form: number / forms.total() for form, number in forms.items()}
    # "But no" is the form of two of the four captions.
    assert shares == pytest.approx({"but no": 0.5, "neither": 0.25, "and": 0.25}, abs=0.1)
