import random
from itertools import pairwise

import pytest

from dialog_gen.shapes.language import (
    ANSWERS,
    DESCRIBE_QUESTION,
    QUESTION_KINDS,
    UNIQUE_QUESTION,
    ask,
    describe,
    judge,
    retrieval_captions,
    unique,
    web_caption,
)
from dialog_gen.shapes.render import IMAGE_SIZE_PX, RGB, render, render_png
from dialog_gen.shapes.scenes import (
    COLORS,
    MAX_OBJECTS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    draw_scene,
    split_of,
)

SCENES = [draw_scene("train", 0, i) for i in range(300)]


def shape(text: str) -> SceneObject:
    """Reads "small red circle top left"."""
    size, color, name, position = text.split(" ", 3)
    return SceneObject(shape=name, color=color, size=size, position=position, offset_px=(0, 0))


def scene(*objects: str, background: str = "gray") -> Scene:
    return Scene(objects=tuple(shape(o) for o in objects), background=background)


TWO = scene("small red circle top left", "large blue star bottom right")
TWINS = scene("small red circle top left", "large red circle top right", "small green square bottom left")
TWIN_STARS = scene("small cyan star top left", "small cyan star top right", background="pink")


# --- scenes


def test_a_scene_is_a_function_of_split_seed_and_index() -> None:
    assert draw_scene("val", 3, 7) == draw_scene("val", 3, 7)
    assert len({draw_scene(split, seed, 7) for split in ("train", "val", "test") for seed in (3, 4)}) == 6


def test_scenes_are_well_formed() -> None:
    for s in SCENES:
        assert 1 <= len(s.objects) <= MAX_OBJECTS
        positions = [POSITIONS.index(o.position) for o in s.objects]
        assert positions == sorted(set(positions))


def test_every_word_of_the_world_is_drawn() -> None:
    objects = [o for s in SCENES for o in s.objects]
    assert {o.color for o in objects} == set(COLORS)
    assert {o.shape for o in objects} == set(SHAPES)
    assert {o.size for o in objects} == set(SIZES)


def test_json_round_trip() -> None:
    assert [Scene.from_json(s.to_json()) for s in SCENES] == SCENES


def test_splits_are_disjoint_across_seeds() -> None:
    def contents(split: str) -> set[str]:
        drawn = [draw_scene(split, seed, i) for seed in range(3) for i in range(200)]
        assert {split_of(s) for s in drawn} == {split}
        return {f"{s.background} {[(o.shape, o.color, o.size, o.position) for o in s.objects]}" for s in drawn}

    train, val, test = (contents(split) for split in ("train", "val", "test"))
    assert not train & val
    assert not train & test
    assert not val & test


def test_jitter_does_not_change_the_split() -> None:
    value = TWO.to_json()
    value["objects"][0]["offset_px"] = [2, -2]
    assert split_of(Scene.from_json(value)) == split_of(TWO)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match=r"train, val, test.*'dev'"):
        draw_scene("dev", 0, 0)


# --- pixels


def test_render_is_deterministic() -> None:
    assert render_png(SCENES[0]) == render_png(Scene.from_json(SCENES[0].to_json()))


def test_each_object_has_its_color_at_its_centre() -> None:
    half = IMAGE_SIZE_PX // 2
    for s in SCENES:
        image = render(s)
        assert image.size == (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
        assert image.getpixel((half, half)) == RGB[s.background]
        for o in s.objects:
            row, column = divmod(POSITIONS.index(o.position), 2)
            centre = (column * half + half // 2 + o.offset_px[0], row * half + half // 2 + o.offset_px[1])
            assert image.getpixel(centre) == RGB[o.color], (s, o)


def test_an_empty_quadrant_is_background() -> None:
    image = render(TWO)
    assert {image.getpixel((x, y)) for x in range(32, 64) for y in range(32)} == {RGB["gray"]}


def test_what_differs_in_the_graph_differs_in_the_pixels() -> None:
    graphs = {(o.shape, o.color, o.size) for s in SCENES for o in s.objects}
    singles = [scene(f"{size} {color} {name} top left") for name, color, size in graphs]
    assert len({render_png(s) for s in singles}) == len(graphs)


# --- questions


def test_every_kind_is_asked_and_judged_against_every_answer() -> None:
    rng = random.Random(0)
    kinds: set[str] = set()
    for s in SCENES:
        for q in ask(s, rng, 5):
            kinds.add(q.kind)
            accepted = [a for a in ANSWERS if judge(s, q.question, a)]
            assert accepted == [q.answer], (s, q)
    assert kinds == set(QUESTION_KINDS)


def test_asked_questions_differ_in_kind_and_follow_the_seed() -> None:
    questions = ask(TWO, random.Random(1), 8)
    assert len({q.kind for q in questions}) == 8
    assert questions == ask(TWO, random.Random(1), 8)


def test_existence_is_affirmed_about_half_the_time() -> None:
    rng = random.Random(0)
    answers = [q.answer for s in SCENES for q in ask(s, rng, 5) if q.kind == "exists"]
    assert 0.35 < answers.count("yes") / len(answers) < 0.65


def test_a_scene_of_twins_offers_five_kinds_and_no_more() -> None:
    kinds = {q.kind for q in ask(TWIN_STARS, random.Random(0), 5)}
    assert kinds == {"at", "background", "exists", "count", "count_color"}
    with pytest.raises(ValueError, match="offers 5 kinds of question, 6"):
        ask(TWIN_STARS, random.Random(0), 6)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What color is the circle?", "red"),
        ("What shape is the blue object?", "star"),
        ("What shape is in the bottom right?", "star"),
        ("Where is the red circle?", "top left"),
        ("Where is the red circle?", "In the top left."),
        ("Is the blue star small or large?", "large"),
        ("what color is the background", " Gray. "),
        ("Is there a blue circle?", "no"),
        ("How many objects are there?", "2"),
        ("How many yellow objects are there?", "0"),
    ],
)
def test_true_answers(question: str, answer: str) -> None:
    assert judge(TWO, question, answer)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What color is the circle?", "blue"),
        ("What color is the circle?", ""),
        ("What color is the circle?", "red red"),
        ("Where is the red circle?", "left"),
        ("How many objects are there?", "two"),
        ("Who drew this?", "yes"),
        ("", ""),
    ],
)
def test_wrong_answers_and_unknown_words(question: str, answer: str) -> None:
    assert not judge(TWO, question, answer)


@pytest.mark.parametrize(
    "question",
    [
        "What color is the circle?",  # two of them
        "What color is the star?",  # none
        "What shape is the red object?",
        "Where is the red circle?",
        "Where is the green circle?",
        "Is the red circle small or large?",
        "What shape is in the bottom right?",  # empty
    ],
)
def test_ill_posed_questions_have_no_true_answer(question: str) -> None:
    assert not any(judge(TWINS, question, a) for a in ANSWERS)


# --- statements


def test_descriptions_and_facts_are_true() -> None:
    rng = random.Random(0)
    for s in [*SCENES, TWINS, TWIN_STARS]:
        assert judge(s, DESCRIBE_QUESTION, describe(s, rng))
        assert judge(s, UNIQUE_QUESTION, unique(s, rng))


def test_a_description_is_false_of_most_other_scenes() -> None:
    rng = random.Random(0)
    three = [s for s in SCENES if len(s.objects) == MAX_OBJECTS]
    true = sum(judge(b, DESCRIBE_QUESTION, describe(a, rng)) for a, b in pairwise(three))
    assert true <= 1


@pytest.mark.parametrize(
    ("which", "statement"),
    [
        (TWO, "a red circle and a blue star"),
        (TWO, "A large blue star and a red circle."),
        (TWO, "a blue star"),
        (TWO, "the blue star is large and in the bottom right"),
        (TWO, "There are two objects on a gray background."),
        (TWINS, "a large red circle, a green square and a small red circle"),
        (TWINS, "a red circle, a large red circle and a green square"),
    ],
)
def test_true_statements(which: Scene, statement: str) -> None:
    assert judge(which, DESCRIBE_QUESTION, statement)
    assert judge(which, UNIQUE_QUESTION, statement)


@pytest.mark.parametrize(
    ("which", "statement"),
    [
        (TWO, ""),
        (TWO, "a red star"),
        (TWO, "a large red circle and a blue star"),
        (TWO, "a red circle and a red circle"),  # there is one
        (TWO, "a red circle, a blue star and a green square"),
        (TWO, "a red circle and a dog"),
        (TWO, "a red circle and"),
        (TWO, "the blue star is small and in the bottom right"),
        (TWO, "the blue star is large and in the top left"),
        (TWO, "there are three objects on a gray background"),
        (TWO, "there are two objects on a pink background"),
        (TWO, "there are 2 objects on a gray background"),
        (TWO, "a geometric pattern"),
        (TWINS, "the red circle is small and in the top left"),  # which?
        (TWINS, "a small red circle and a small red circle"),
        (TWINS, "a red circle, a red circle and a red circle"),
    ],
)
def test_wrong_statements(which: Scene, statement: str) -> None:
    assert not judge(which, DESCRIBE_QUESTION, statement)
    assert not judge(which, UNIQUE_QUESTION, statement)


# --- captions


def test_retrieval_captions_name_every_object() -> None:
    rng = random.Random(0)
    for s in SCENES:
        captions = retrieval_captions(s, rng)
        assert len(captions) == len(set(captions)) == 5
        for caption in captions:
            assert all(f"{o.size} {o.color} {o.shape}" in caption for o in s.objects)


def test_web_captions_follow_the_seed_and_say_nothing_untrue() -> None:
    for s in SCENES:
        caption = web_caption(s, random.Random(5))
        assert caption == web_caption(s, random.Random(5))
        words = caption.split()
        assert {w for w in words if w in SHAPES} <= {o.shape for o in s.objects}
        assert {w for w in words if w in COLORS} <= {o.color for o in s.objects}
