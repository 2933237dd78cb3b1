"""Choice items of `shapes-2`: the right caption of an image among wrong ones, which differ from it in one thing.

The kinds follow SugarCrepe (2306.14610; swap and replace), ARO (2210.01936) and NegBench (2501.09425). Captions with
"a" say that there is such an object, or such a pair; a wrong caption is false of the scene in this sense.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from dialog_gen.shapes.choices import Scenes
from dialog_gen.shapes.second.nouns import NUMBERS, PLURALS, Noun, absent_noun, short_noun
from dialog_gen.shapes.second.relations import decided, holds
from dialog_gen.shapes.second.scenes import COLORS, SIZES, TEXTURES, Scene, SceneObject

_PLACES = ("left of", "right of", "above", "below")
_DEPTHS = ("in front of", "behind")


@dataclass(frozen=True, slots=True)
class Choice:
    """The right caption of an image first, then the wrong ones; `kind` is a name of `CHOICE_KINDS`."""

    kind: str
    captions: tuple[str, ...]


def choice_files(scenes: Scenes) -> Iterator[tuple[str, Iterator[str]]]:
    """Name and lines of the only file: a JSON list of {"image_id", "captions", "kind"}, the right caption first.

    `dialog-eval choice` reads it as the benchmark `captions`. The same scenes give the same lines.
    """
    yield f"choices_shapes-2_{scenes.split}.json", _json_list(_items(scenes))


def _items(scenes: Scenes) -> Iterator[dict[str, Any]]:
    for index in range(scenes.limit):
        for choice in choices(scenes.scene(index), scenes.rng("choice items", index)):
            yield {"image_id": scenes.image_id(index), "captions": choice.captions, "kind": choice.kind}


def _json_list(items: Iterator[Any]) -> Iterator[str]:
    """The lines of a JSON list with an item a line."""
    mark = "["
    for item in items:
        yield mark + json.dumps(item)
        mark = ","
    yield "]" if mark == "," else "[]"


def choices(scene: Scene, rng: random.Random) -> list[Choice]:
    """One item of each kind that the scene has material for."""
    items = ((kind, make(scene, rng)) for kind, make in CHOICE_KINDS.items())
    return [Choice(kind, captions) for kind, captions in items if captions]


def _relation_swap(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    return _swapped(scene, rng, _PLACES)


def _occlusion_swap(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    return _swapped(scene, rng, _DEPTHS)


def _swapped(scene: Scene, rng: random.Random, relations: tuple[str, ...]) -> tuple[str, ...]:
    """A relation, and the same with the two objects exchanged."""
    found = decided(scene, relations)
    if not found:
        return ()
    first, relation, second = rng.choice(found)
    return _related(first, relation, second), _related(second, relation, first)


def _relation_replace(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """A relation, and those that are false of the same objects in the same order."""
    found = decided(scene, _PLACES)
    if not found:
        return ()
    first, relation, second = rng.choice(found)
    wrong = [r for r in _PLACES if holds(scene, first, r, second) is False]
    return _related(first, relation, second), *(_related(first, r, second) for r in wrong)


def _attribute_swap(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Two objects, and the same with their colors, textures or sizes exchanged."""
    found: list[tuple[Noun, Noun, str]] = []
    for a in scene.objects:
        for b in scene.objects:
            for name in ("color", "texture", "size"):
                if a.shape == b.shape or getattr(a, name) == getattr(b, name):
                    continue
                first, second = (Noun(shape=o.shape, **{name: getattr(o, name)}) for o in (a, b))
                other = _exchanged(first, second, name)
                if not all(noun.among(scene) for noun in other) and _may_name(scene, *other):
                    found.append((first, second, name))
    if not found:
        return ()
    first, second, name = rng.choice(found)
    return _both(first, second), _both(*_exchanged(first, second, name))


def _attribute_replace(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """An object, and the same with every color, texture or size that no object of its shape has."""
    o = rng.choice(scene.objects)
    name, words = rng.choice((("color", COLORS), ("texture", TEXTURES), ("size", SIZES)))
    nouns = [Noun(shape=o.shape, **{name: word}) for word in words]
    wrong = [noun for noun in nouns if not noun.among(scene) and _may_name(scene, noun)]
    right = Noun(shape=o.shape, **{name: getattr(o, name)})
    return (right.with_article, *(noun.with_article for noun in wrong)) if wrong else ()


def _count(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """The number of objects, of those of a shape or of those of a color; and all other numbers from one to five."""
    o = rng.choice(scene.objects)
    noun = rng.choice((Noun(), Noun(shape=o.shape), Noun(color=o.color)))
    right = len(noun.among(scene))
    numbers = [right, *(n for n in range(1, len(NUMBERS)) if n != right)]
    return tuple(f"{NUMBERS[n]} {_plural(noun) if n != 1 else noun}" for n in numbers)


def _negation(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """What is not there denied, and what is there denied."""
    present, absent = short_noun(rng.choice(scene.objects)), absent_noun(scene, rng)
    return f"there is no {absent}", f"there is no {present}"


def _negation_hybrid(scene: Scene, rng: random.Random) -> tuple[str, ...]:
    """Two objects, each affirmed or denied: one of the four ways is right, and any may be."""
    present = sorted({str(noun): noun for noun in map(short_noun, scene.objects)}.items())
    absent = {str(noun): noun for noun in (absent_noun(scene, rng) for _ in range(2))}
    rights = ["first", "second", *(["both"] if len(present) > 1 else []), *(["neither"] if len(absent) > 1 else [])]
    right = rng.choice(rights)
    there, not_there = [noun for _, noun in rng.sample(present, len(present))], list(absent.values())
    a, b = {
        "first": (there[0], not_there[0]),
        "second": (not_there[0], there[0]),
        "both": tuple(there[:2]),
        "neither": tuple(not_there[:2]),
    }[right]
    captions = {
        "first": f"{a.with_article} but no {b}",
        "second": f"{b.with_article} but no {a}",
        "both": f"{a.with_article} and {b.with_article}",
        "neither": f"neither {a.with_article} nor {b.with_article}",
    }
    return captions.pop(right), *captions.values()


CHOICE_KINDS: Final[dict[str, Callable[[Scene, random.Random], tuple[str, ...]]]] = {
    "relation_swap": _relation_swap,
    "relation_replace": _relation_replace,
    "occlusion_swap": _occlusion_swap,
    "attribute_swap": _attribute_swap,
    "attribute_replace": _attribute_replace,
    "count": _count,
    "negation": _negation,
    "negation_hybrid": _negation_hybrid,
}
"""Kind -> function of a scene that gives the right caption and the wrong ones, or nothing."""


def _related(first: SceneObject, relation: str, second: SceneObject) -> str:
    return f"{short_noun(first).with_article} {relation} {short_noun(second).with_article}"


def _both(first: Noun, second: Noun) -> str:
    return f"{first.with_article} and {second.with_article}"


def _exchanged(first: Noun, second: Noun, name: str) -> tuple[Noun, Noun]:
    mine, theirs = getattr(first, name), getattr(second, name)
    return replace(first, **{name: theirs}), replace(second, **{name: mine})


def _may_name(scene: Scene, *nouns: Noun) -> bool:
    """Whether the nouns may occur in texts about the scene: held-out combinations only where it has one."""
    return scene.is_held_out or not any(noun.is_held_out for noun in nouns)


def _plural(noun: Noun) -> str:
    return PLURALS[noun.shape] if noun.shape else f"{noun}s"
