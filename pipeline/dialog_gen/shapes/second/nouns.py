"""Names of objects in the world `shapes-2`, such as "large striped red circle", and the objects that a name fits."""

import random
from dataclasses import dataclass

from dialog_gen.shapes.second.scenes import COLORS, HELD_OUT, SHAPES, Scene, SceneObject

PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}
NUMBERS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """What a name says of an object; None where it says nothing."""

    color: str | None = None
    shape: str | None = None
    texture: str | None = None
    size: str | None = None

    def fits(self, o: SceneObject) -> bool:
        """Whether the object may be called so."""
        said = ((self.color, o.color), (self.shape, o.shape), (self.texture, o.texture), (self.size, o.size))
        return all(word in (None, is_) for word, is_ in said)

    def among(self, scene: Scene) -> list[SceneObject]:
        """The objects of the scene that it fits."""
        return [o for o in scene.objects if self.fits(o)]

    @property
    def is_held_out(self) -> bool:
        """Whether only the split compositional has objects that it fits."""
        return bool({(self.color, self.shape), (self.texture, self.shape)} & HELD_OUT)

    def __str__(self) -> str:
        """The name without an article."""
        return " ".join(word for word in (self.size, self.texture, self.color, self.shape or "object") if word)

    @property
    def with_article(self) -> str:
        """The name after "a" or "an"."""
        return f"an {self}" if str(self)[0] in "aeiou" else f"a {self}"


def full_noun(o: SceneObject) -> Noun:
    """The name that says everything of an object; a plain one is not called plain."""
    texture = None if o.texture == "plain" else o.texture
    return Noun(color=o.color, shape=o.shape, texture=texture, size=o.size)


def short_noun(o: SceneObject) -> Noun:
    """The name that says color and shape."""
    return Noun(color=o.color, shape=o.shape)


def unique_objects(scene: Scene) -> list[SceneObject]:
    """The objects that are the only one of their color and shape."""
    return [o for o in scene.objects if len(short_noun(o).among(scene)) == 1]


def absent_noun(scene: Scene, rng: random.Random) -> Noun:
    """A color and shape that no object has, near one that is there: only the color or only the shape occurs.

    It is a held-out combination only where the scene has one, so that no text of the other splits names these.
    """
    o = rng.choice(scene.objects)
    near = [Noun(color=o.color, shape=s) for s in SHAPES] + [Noun(color=c, shape=o.shape) for c in COLORS]
    return rng.choice([n for n in near if not n.among(scene) and (scene.is_held_out or not n.is_held_out)])


def listing(texts: list[str]) -> str:
    """The texts as one list in words."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
