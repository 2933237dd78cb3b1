"""Captions of scenes of `shapes-2`: of the web, and of careful annotators."""

import random
import re

from dialog_gen.shapes.second.nouns import NUMBERS, PLURALS, Noun, absent_noun, full_noun, listing, short_noun
from dialog_gen.shapes.second.relations import decided, pick_relation
from dialog_gen.shapes.second.scenes import COLORS, SHAPES, Scene, SceneObject

# How often an alt text of the web has each form; those that name an object have the slot {nouns}.
_WEB_TEMPLATES = {
    "{nouns}": 3,
    "{nouns} on {background} background": 3,
    "{nouns} icon | free vector": 2,
    "stock photo of {nouns}": 2,
    "{nouns} clipart, flat design": 2,
    "wallpaper with {placed}": 6,
    "{related} vector art": 6,
    "set of {number} {things}": 2,
    "download {nouns} - royalty free": 1,
    "abstract geometric wallpaper #{serial}": 1,
}
CLASS_TEMPLATES = tuple(t.replace("{nouns}", "{}") for t in _WEB_TEMPLATES if re.findall(r"{\w+}", t) == ["{nouns}"])
"""Templates of web captions that name only the objects, for zero-shot classification."""


def web_caption(scene: Scene, rng: random.Random) -> str:
    """An alt text like those of the web: it says some of what is there, among words that do not describe the scene.

    Its words never deny anything.
    """
    template = rng.choices(list(_WEB_TEMPLATES), list(_WEB_TEMPLATES.values()))[0]
    related = pick_relation(scene, rng)
    if "{related}" in template and related is None:
        template = "wallpaper with {placed}"
    listed = rng.sample(scene.objects, rng.randint(1, len(scene.objects)))
    number, things = _counted(scene, rng)
    return template.format(
        nouns=" and ".join(str(_some_noun(o, rng)) for o in listed),
        background=scene.background,
        placed=f"{_some_noun(listed[0], rng)} in the {listed[0].cell}",
        related=related and f"{_some_noun(related[0], rng)} {related[1]} {_some_noun(related[2], rng)}",
        number=number,
        things=things,
        serial=rng.randint(1, 999),
    )


def retrieval_captions(scene: Scene, rng: random.Random, count: int = 5) -> list[str]:
    """`count` captions that name every object, as COCO's annotators would."""
    captions: list[str] = []
    for i in range(count):
        order = rng.sample(scene.objects, len(scene.objects))
        nouns = listing([full_noun(o).with_article for o in order])
        placed = listing([f"{short_noun(o).with_article} in the {o.cell}" for o in order])
        related = pick_relation(scene, rng)
        number = NUMBERS[len(order)]
        forms = (
            f"{nouns} on a {scene.background} background",
            placed,
            f"{nouns}, where the {short_noun(related[0])} is {related[1]} the {short_noun(related[2])}"
            if related
            else f"a {scene.background} picture with {nouns}",
            f"{number} object{'' if number == 'one' else 's'}: {nouns}",
            f"there is {nouns} in the image",
        )
        captions.append(forms[i % len(forms)])
    return captions


def negated_captions(scene: Scene, rng: random.Random, count: int = 5) -> list[str]:
    """The captions of `retrieval_captions`, each with a true statement of what is not there (NegBench, 2501.09425)."""
    captions = retrieval_captions(scene, rng, count)
    return [f"{caption}, but no {absent_noun(scene, rng)}" for caption in captions]


def description(scene: Scene, rng: random.Random) -> str:
    """A text of several sentences with all there is to say, as DOCCI's annotators do (2404.19753)."""
    placed = [f"There is {full_noun(o).with_article} in the {o.cell}." for o in scene.objects]
    related = [
        f"The {short_noun(first)} is {relation} the {short_noun(second)}."
        for first, relation, second in decided(scene, ("left of", "above", "in front of"))
    ]
    rng.shuffle(placed)
    rng.shuffle(related)
    number = NUMBERS[len(placed)]
    shown = f"The picture shows {number} object{'' if number == 'one' else 's'} on a {scene.background} background."
    return " ".join([shown, *placed, *related])


def _counted(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A number in words and what there are that many of: "three", "red objects"."""
    nouns = {Noun(): "object", **{Noun(color=o.color): f"{o.color} object" for o in scene.objects}}
    nouns |= {Noun(shape=o.shape): o.shape for o in scene.objects}
    noun = rng.choice(sorted(nouns, key=lambda n: (COLORS.index(n.color) if n.color else -1, str(n))))
    number = len(noun.among(scene))
    return NUMBERS[number], nouns[noun] if number == 1 else PLURALS.get(nouns[noun], f"{nouns[noun]}s")


def _some_noun(o: SceneObject, rng: random.Random) -> Noun:
    """A name with color and shape, and with size or texture at times."""
    texture = o.texture if rng.random() < (0.2 if o.texture == "plain" else 0.6) else None
    return Noun(color=o.color, shape=o.shape, texture=texture, size=o.size if rng.random() < 0.3 else None)


CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
"""The classes of images."""


def class_of(scene: Scene) -> str | None:
    """The class of a scene: color and shape of its only large object; None if it has not exactly one."""
    large = [o for o in scene.objects if o.size == "large"]
    return str(short_noun(large[0])) if len(large) == 1 else None
