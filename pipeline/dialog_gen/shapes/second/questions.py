"""Questions about scenes of `shapes-2`, their true answers, and the judgement of a model's answers.

As in the first world, a question is well-posed for a scene if everything that it presupposes is true.
"""

import random
from collections.abc import Callable

from dialog_gen.shapes.questions import Question, QuestionKind, draw_questions, kind_of_question, plain
from dialog_gen.shapes.second.nouns import PLURALS, Noun, absent_noun, short_noun, unique_objects
from dialog_gen.shapes.second.relations import OPPOSITES, RELATIONS, decided, holds, pick_relation
from dialog_gen.shapes.second.scenes import (
    BACKGROUNDS,
    CELLS,
    COLORS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
)

Slots = tuple[str, ...]

_SHAPE_OF = {plural: shape for shape, plural in PLURALS.items()}
_WORDS = {
    "color": COLORS,
    "shape": SHAPES,
    "shapes": tuple(_SHAPE_OF),
    "texture": TEXTURES,
    "cell": CELLS,
    "relation": RELATIONS,
    "other_color": COLORS,
    "other_shape": SHAPES,
}


def _only(scene: Scene, noun: Noun) -> SceneObject | None:
    found = noun.among(scene)
    return found[0] if len(found) == 1 else None


def _attribute(name: str) -> Callable[[Scene, str, str], str | None]:
    """The answer to a question about one attribute of "the {color} {shape}"."""

    def answer(scene: Scene, color: str, shape: str) -> str | None:
        found = _only(scene, Noun(color=color, shape=shape))
        return found and getattr(found, name)

    return answer


def _color_of_shape(scene: Scene, shape: str) -> str | None:
    found = _only(scene, Noun(shape=shape))
    return found and found.color


def _shape_of_color(scene: Scene, color: str) -> str | None:
    found = _only(scene, Noun(color=color))
    return found and found.shape


def _shape_at(scene: Scene, cell: str) -> str | None:
    found = [o for o in scene.objects if o.cell == cell]
    return found[0].shape if len(found) == 1 else None


def _is_related(scene: Scene, color: str, shape: str, relation: str, color_2: str, shape_2: str) -> str | None:
    first, second = _only(scene, Noun(color=color, shape=shape)), _only(scene, Noun(color=color_2, shape=shape_2))
    if first is None or second is None or (found := holds(scene, first, relation, second)) is None:
        return None
    return "yes" if found else "no"


def _related_shape(scene: Scene, relation: str, color: str, shape: str) -> str | None:
    """The shape of the only object that is, say, left of the one named; None if another one may be."""
    second = _only(scene, Noun(color=color, shape=shape))
    if second is None:
        return None
    found = [o for o in scene.objects if o is not second and holds(scene, o, relation, second)]
    return found[0].shape if len(found) == 1 else None


def _ask_unique(scene: Scene, rng: random.Random) -> Slots | None:
    return _pick(rng, [(o.color, o.shape) for o in unique_objects(scene)])


def _ask_presence(scene: Scene, rng: random.Random) -> Slots:
    """Something that is there in half of the cases, else a near miss."""
    noun = short_noun(rng.choice(scene.objects)) if rng.random() < 0.5 else absent_noun(scene, rng)
    return str(noun.color), str(noun.shape)


def _ask_related(scene: Scene, rng: random.Random) -> Slots | None:
    """A relation that holds, or in half of the cases its opposite."""
    if (found := pick_relation(scene, rng)) is None:
        return None
    first, relation, second = found
    relation = OPPOSITES[relation] if rng.random() < 0.5 else relation
    return first.color, first.shape, relation, second.color, second.shape


def _ask_related_shape(scene: Scene, rng: random.Random) -> Slots | None:
    slots = [(relation, second.color, second.shape) for _, relation, second in decided(scene)]
    return _pick(rng, [s for s in slots if _related_shape(scene, *s)])


def _ask_number(attribute: str, words: tuple[str, ...]) -> Callable[[Scene, random.Random], Slots]:
    """A word for `attribute` that some object has in three of four cases."""

    def ask_number(scene: Scene, rng: random.Random) -> Slots:
        present = [getattr(o, attribute) for o in scene.objects]
        return (rng.choice(present if rng.random() < 0.75 else words),)

    return ask_number


def _ask_number_of_shape(scene: Scene, rng: random.Random) -> Slots:
    (shape,) = _ask_number("shape", SHAPES)(scene, rng)
    return (PLURALS[shape],)


def _pick(rng: random.Random, slots: list[Slots]) -> Slots | None:
    return rng.choice(slots) if slots else None


def _kind(
    vqa_type: str,
    answer_type: str,
    template: str,
    answer: Callable[..., str | None],
    ask: Callable[[Scene, random.Random], Slots | None],
) -> QuestionKind[Scene]:
    return QuestionKind.of(vqa_type, answer_type, template, answer, ask, words=_WORDS)


_THE, _OTHER = "the {color} {shape}", "the {other_color} {other_shape}"

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
    "texture": _kind("what", "other", f"What texture does {_THE} have?", _attribute("texture"), _ask_unique),
    "size": _kind("what", "other", f"What size is {_THE}?", _attribute("size"), _ask_unique),
    "where": _kind("where is the", "other", f"Where is {_THE}?", _attribute("cell"), _ask_unique),
    "at": _kind(
        "what is in the",
        "other",
        "What shape is in the {cell}?",
        _shape_at,
        lambda scene, rng: _pick(rng, [(o.cell,) for o in scene.objects if _shape_at(scene, o.cell)]),
    ),
    "related_shape": _kind("what", "other", f"What shape is {{relation}} {_THE}?", _related_shape, _ask_related_shape),
    "background": _kind(
        "what color is the",
        "other",
        "What color is the background?",
        lambda scene: scene.background,
        lambda scene, rng: (),
    ),
    "exists": _kind(
        "is there any",
        "yes/no",
        "Is there any {color} {shape}?",
        lambda scene, color, shape: "yes" if Noun(color=color, shape=shape).among(scene) else "no",
        _ask_presence,
    ),
    "absent": _kind(
        "is there no",
        "yes/no",
        "Is there no {color} {shape}?",
        lambda scene, color, shape: "no" if Noun(color=color, shape=shape).among(scene) else "yes",
        _ask_presence,
    ),
    "related": _kind("is the", "yes/no", f"Is {_THE} {{relation}} {_OTHER}?", _is_related, _ask_related),
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
        lambda scene, color: str(len(Noun(color=color).among(scene))),
        _ask_number("color", COLORS),
    ),
    "count_shape": _kind(
        "how many",
        "number",
        "How many {shapes} are there?",
        lambda scene, plural: str(len(Noun(shape=_SHAPE_OF[plural.lower()]).among(scene))),
        _ask_number_of_shape,
    ),
    "count_texture": _kind(
        "how many",
        "number",
        "How many {texture} objects are there?",
        lambda scene, texture: str(len(Noun(texture=texture).among(scene))),
        _ask_number("texture", TEXTURES),
    ),
    "count_not": _kind(
        "how many",
        "number",
        "How many objects are not {color}?",
        lambda scene, color: str(len(scene.objects) - len(Noun(color=color).among(scene))),
        _ask_number("color", COLORS),
    ),
}

ANSWER_GROUPS: tuple[tuple[str, ...], ...] = (
    ("yes", "no"),
    tuple(str(n) for n in range(MAX_OBJECTS + 1)),
    *(COLORS, SHAPES, TEXTURES, SIZES, CELLS, BACKGROUNDS),
)
"""All answers, in groups of those that answer the same questions."""


def ask(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """`count` well-posed questions about the scene, each of a different kind, in random order.

    Raises ValueError if fewer kinds are possible for the scene (at least eight always are).
    """
    return draw_questions(QUESTION_KINDS, scene, rng, count)


def question_kind(question: str) -> str:
    """The kind of a model's question: a name of `QUESTION_KINDS`, or "other"."""
    return kind_of_question(QUESTION_KINDS, question)


def judge(scene: Scene, question: str, answer: str) -> bool:
    """Whether a model's question and answer are true of the scene.

    Also False if the question is not well-posed for the scene, or if question or answer has an unknown form.
    """
    asked = QUESTION_KINDS.get(question_kind(question))
    match = asked and asked.pattern.fullmatch(plain(question) + "?")
    truth = asked.answer(scene, *match.groups()) if asked and match else None
    return truth is not None and plain(answer) == truth
