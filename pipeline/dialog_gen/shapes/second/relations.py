"""Where objects of a scene of `shapes-2` are to one another.

Left, right, above and below compare the centres of objects in different cells: "left of" is true if the first centre is
at least `MARGIN_PX` to the left of the second, false if it is as far to the right, and undecided between. "In front of"
and "behind" are decided for two objects of one cell, which overlap, and for no others. Texts say and ask only what is
decided.
"""

import random

from dialog_gen.shapes.second.nouns import unique_objects
from dialog_gen.shapes.second.scenes import Scene, SceneObject

MARGIN_PX = 16
OPPOSITES = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
"""Relation -> the relation that holds if the two objects change places."""
RELATIONS = tuple(OPPOSITES)


def holds(scene: Scene, first: SceneObject, relation: str, second: SceneObject) -> bool | None:
    """Whether `first` is, say, left of `second`; None if that is undecided.

    Raises KeyError for an unknown relation.
    """
    if relation in ("right of", "below", "behind"):
        return holds(scene, second, OPPOSITES[relation], first)
    if relation == "in front of":
        order = scene.objects.index(first) - scene.objects.index(second)
        return order > 0 if first.cell == second.cell and order else None
    axis = {"left of": 0, "above": 1}[relation]
    distance = second.center_px[axis] - first.center_px[axis]
    return distance > 0 if abs(distance) >= MARGIN_PX and first.cell != second.cell else None


def decided(scene: Scene, relations: tuple[str, ...] = RELATIONS) -> list[tuple[SceneObject, str, SceneObject]]:
    """All (first, relation, second) that hold, of objects that are the only ones of their color and shape."""
    unique = unique_objects(scene)
    return [(a, r, b) for a in unique for b in unique if a is not b for r in relations if holds(scene, a, r, b)]


def pick_relation(scene: Scene, rng: random.Random) -> tuple[SceneObject, str, SceneObject] | None:
    """One of `decided`, of overlapping objects in half of the cases where some overlap; None if there is none."""
    found = decided(scene)
    overlapping = [item for item in found if item[1] in ("in front of", "behind")]
    if overlapping and rng.random() < 0.5:
        found = overlapping
    return rng.choice(found) if found else None
