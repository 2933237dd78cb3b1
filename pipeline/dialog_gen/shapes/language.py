"""Texts about a scene: captions, questions with their answers, and the judgement of a model's answers.

There are nine kinds of questions. A question is well-posed for a scene if everything that it presupposes is true: "What
color is the star?" needs exactly one star. `judge` counts an answer as true only if the question is of a known kind and
well-posed, and the answer agrees with the scene graph.
"""

import random
import re
from collections import Counter
from collections.abc import Callable

from dialog_gen.shapes.questions import Question, QuestionKind, draw_questions, kind_of_question, plain
from dialog_gen.shapes.scenes import BACKGROUNDS, COLORS, MAX_OBJECTS, POSITIONS, SHAPES, SIZES, Scene, SceneObject

DESCRIBE_QUESTION = "What do you see in this image?"
UNIQUE_QUESTION = "What makes this image unique?"

_COLOR, _SHAPE, _POSITION = (f"({'|'.join(words)})" for words in (COLORS, SHAPES, POSITIONS))
_SIZED_OBJECT = re.compile(rf"(?:a )?(?:({'|'.join(SIZES)}) )?{_COLOR} {_SHAPE}")
_COUNTS = ("no", "one", "two", "three")


def _only(objects: list[SceneObject]) -> SceneObject | None:
    return objects[0] if len(objects) == 1 else None


def _matching(scene: Scene, color: str | None = None, shape: str | None = None) -> list[SceneObject]:
    return [o for o in scene.objects if color in (None, o.color) and shape in (None, o.shape)]


def _pick(rng: random.Random, slots: list[tuple[str, ...]]) -> tuple[str, ...] | None:
    return rng.choice(slots) if slots else None


def _color_of_shape(scene: Scene, shape: str) -> str | None:
    found = _only(_matching(scene, shape=shape))
    return found and found.color


def _shape_of_color(scene: Scene, color: str) -> str | None:
    found = _only(_matching(scene, color=color))
    return found and found.shape


def _position_of(scene: Scene, color: str, shape: str) -> str | None:
    found = _only(_matching(scene, color, shape))
    return found and found.position


def _size_of(scene: Scene, color: str, shape: str) -> str | None:
    found = _only(_matching(scene, color, shape))
    return found and found.size


def _shape_at(scene: Scene, position: str) -> str | None:
    found = _only([o for o in scene.objects if o.position == position])
    return found and found.shape


def _ask_exists(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Slots for a yes in half of the cases; otherwise a near miss, where only the color or only the shape occurs."""
    o = rng.choice(scene.objects)
    if rng.random() < 0.5:
        return o.color, o.shape
    absent = [(o.color, s) for s in SHAPES] + [(c, o.shape) for c in COLORS]
    return rng.choice([slots for slots in absent if not _matching(scene, *slots)])


def _ask_count_color(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    present = [o.color for o in scene.objects]
    return (rng.choice(present if rng.random() < 0.75 else COLORS),)


def _unique_objects(scene: Scene, rng: random.Random) -> tuple[str, ...] | None:
    return _pick(rng, [(o.color, o.shape) for o in scene.objects if len(_matching(scene, o.color, o.shape)) == 1])


def _kind(
    vqa_type: str,
    answer_type: str,
    template: str,
    answer: Callable[..., str | None],
    ask: Callable[[Scene, random.Random], tuple[str, ...] | None],
) -> QuestionKind[Scene]:
    words = {"color": COLORS, "shape": SHAPES, "position": POSITIONS}
    return QuestionKind.of(vqa_type, answer_type, template, answer, ask, words=words)


QUESTION_KINDS: dict[str, QuestionKind[Scene]] = {
    "color": _kind(
        "what color is the",
        "other",
        "What color is the {shape}?",
        _color_of_shape,
        lambda scene, rng: _pick(rng, [(o.shape,) for o in scene.objects if _color_of_shape(scene, o.shape)]),
    ),
    "shape": _kind(
        "what",
        "other",
        "What shape is the {color} object?",
        _shape_of_color,
        lambda scene, rng: _pick(rng, [(o.color,) for o in scene.objects if _shape_of_color(scene, o.color)]),
    ),
    "at": _kind(
        "what is in the",
        "other",
        "What shape is in the {position}?",
        _shape_at,
        lambda scene, rng: (rng.choice(scene.objects).position,),
    ),
    "where": _kind("where is the", "other", "Where is the {color} {shape}?", _position_of, _unique_objects),
    "size": _kind("is the", "other", "Is the {color} {shape} small or large?", _size_of, _unique_objects),
    "background": _kind(
        "what color is the",
        "other",
        "What color is the background?",
        lambda scene: scene.background,
        lambda scene, rng: (),
    ),
    "exists": _kind(
        "is there a",
        "yes/no",
        "Is there a {color} {shape}?",
        lambda scene, color, shape: "yes" if _matching(scene, color, shape) else "no",
        _ask_exists,
    ),
    "count": _kind(
        "how many",
        "number",
        "How many objects are there?",
        lambda scene: str(len(scene.objects)),
        lambda scene, rng: (),
    ),
    "count_color": _kind(
        "how many",
        "number",
        "How many {color} objects are there?",
        lambda scene, color: str(len(_matching(scene, color=color))),
        _ask_count_color,
    ),
}

ANSWER_GROUPS: tuple[tuple[str, ...], ...] = (
    ("yes", "no"),
    tuple(str(n) for n in range(MAX_OBJECTS + 1)),
    *(COLORS, SHAPES, POSITIONS, SIZES, BACKGROUNDS),
)
"""All answers, in groups of those that answer the same questions."""
ANSWERS: tuple[str, ...] = tuple(answer for group in ANSWER_GROUPS for answer in group)


def ask(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """`count` well-posed questions about the scene, each of a different kind, in random order.

    Raises ValueError if fewer kinds are possible for the scene (at least five always are).
    """
    return draw_questions(QUESTION_KINDS, scene, rng, count)


def describe(scene: Scene, rng: random.Random) -> str:
    """All objects in random order, such as "a small red circle and a large blue star"; with or without sizes."""
    with_size = rng.random() < 0.5
    return _listing([_noun(o, with_size=with_size) for o in rng.sample(scene.objects, len(scene.objects))])


def unique(scene: Scene, rng: random.Random) -> str:
    """One fact about the scene: position and size of an object, or the number of objects and the background."""
    single = [o for o in scene.objects if len(_matching(scene, o.color, o.shape)) == 1]
    if not single or rng.random() < 0.4:
        count = len(scene.objects)
        are, plural = ("is", "") if count == 1 else ("are", "s")
        return f"there {are} {_COUNTS[count]} object{plural} on a {scene.background} background"
    o = rng.choice(single)
    return f"the {o.color} {o.shape} is {o.size} and in the {o.position}"


_WEB_TEMPLATES = (
    "{nouns}",
    "{nouns} on {background} background",
    "{nouns} icon | free vector",
    "stock photo of {nouns}",
    "{nouns} clipart, flat design",
    "abstract wallpaper with {nouns} in the {position}",
    "download {nouns} - royalty free",
    "abstract geometric wallpaper #{number}",
)

CLASS_TEMPLATES = tuple(t.replace("{nouns}", "{}") for t in _WEB_TEMPLATES if re.findall(r"{\w+}", t) == ["{nouns}"])
"""Templates of web captions that name only the objects, for zero-shot classification."""


CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
"""The classes of images."""


def class_of(scene: Scene) -> str | None:
    """The class of a scene: color and shape of its only large object; None if it has not exactly one."""
    large = [o for o in scene.objects if o.size == "large"]
    return f"{large[0].color} {large[0].shape}" if len(large) == 1 else None


def web_caption(scene: Scene, rng: random.Random) -> str:
    """An alt text like those of the web: it names some of the objects, among words that do not describe the scene."""
    listed = rng.sample(scene.objects, rng.randint(1, len(scene.objects)))
    nouns = " and ".join(_noun(o, with_size=rng.random() < 0.3, article=False) for o in listed)
    return rng.choice(_WEB_TEMPLATES).format(
        nouns=nouns, background=scene.background, position=listed[0].position, number=rng.randint(1, 999)
    )


def retrieval_captions(scene: Scene, rng: random.Random, count: int = 5) -> list[str]:
    """`count` captions that name every object, as COCO's annotators would."""
    templates = (
        "{listing} on a {background} background",
        "a {background} picture with {listing}",
        "{listing}",
        "{placed}",
        "there is {listing} in the image",
    )
    captions: list[str] = []
    for i in range(count):
        order = rng.sample(scene.objects, len(scene.objects))
        listing = _listing([_noun(o, with_size=True) for o in order])
        placed = _listing([f"{_noun(o, with_size=True)} in the {o.position}" for o in order])
        captions.append(
            templates[i % len(templates)].format(listing=listing, placed=placed, background=scene.background)
        )
    return captions


def description(scene: Scene, rng: random.Random) -> str:
    """A text of several sentences with all there is to say, as DOCCI's annotators do (2404.19753)."""
    placed = [f"There is {_noun(o, with_size=True)} in the {o.position}." for o in scene.objects]
    rng.shuffle(placed)
    empty = [f"the {position}" for position in POSITIONS if not any(o.position == position for o in scene.objects)]
    nothing = [f"There is nothing in {_listing(empty).replace(' and ', ' or ')}."] if empty else []
    count = len(scene.objects)
    plural = "" if count == 1 else "s"
    shown = f"The picture shows {_COUNTS[count]} object{plural} on a {scene.background} background."
    return " ".join([shown, *placed, *nothing])


def judge(scene: Scene, question: str, answer: str) -> bool:
    """Whether a model's question and answer are true of the scene.

    Also False if the question is not well-posed for the scene, or if question or answer has an unknown form.
    """
    question, answer = plain(question), plain(answer)
    if question in (plain(DESCRIBE_QUESTION), plain(UNIQUE_QUESTION)):
        return _true_statement(scene, answer)
    for kind in QUESTION_KINDS.values():
        if match := kind.pattern.fullmatch(question + "?"):
            truth = kind.answer(scene, *match.groups())
            return truth is not None and answer == truth
    return False


def question_kind(question: str) -> str:
    """The kind of a model's question: a name of `QUESTION_KINDS`, "describe", "unique", or "other" for the rest."""
    named = {plain(DESCRIBE_QUESTION): "describe", plain(UNIQUE_QUESTION): "unique"}
    return named.get(plain(question)) or kind_of_question(QUESTION_KINDS, question)


def _true_statement(scene: Scene, statement: str) -> bool:
    if match := re.fullmatch(rf"{_COLOR} {_SHAPE} is (small|large) and in the {_POSITION}", statement):
        color, shape, size, position = match.groups()
        found = _only(_matching(scene, color, shape))
        return found is not None and (found.size, found.position) == (size, position)
    if match := re.fullmatch(rf"there (?:is|are) (\w+) objects? on a ({'|'.join(BACKGROUNDS)}) background", statement):
        return match.groups() == (_COUNTS[len(scene.objects)], scene.background)
    named = [_SIZED_OBJECT.fullmatch(part) for part in re.split(r", (?:and )?| and ", statement)]
    return all(named) and _contains(scene, [m.groups() for m in named if m])


def _contains(scene: Scene, named: list[tuple[str | None, ...]]) -> bool:
    """Whether all `named` (size or None, color, shape) can be matched with different objects of the scene."""
    sized = Counter((o.size, o.color, o.shape) for o in scene.objects)
    # Names with a size match fewer objects, so they are assigned first.
    for size, color, shape in sorted(named, key=lambda n: n[0] is None):
        fitting = [key for key in sized if key[1:] == (color, shape) and size in (None, key[0]) and sized[key]]
        if not fitting:
            return False
        sized[fitting[0]] -= 1
    return True


def _noun(o: SceneObject, *, with_size: bool, article: bool = True) -> str:
    words = [o.size, o.color, o.shape] if with_size else [o.color, o.shape]
    if article:
        words.insert(0, "a")
    return " ".join(words)


def _listing(nouns: list[str]) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
