"""Scene graphs of the world `shapes-2`, drawn from a seed.

A scene has one to five outlined shapes on a plain background. The image is divided into nine cells; a cell has no
object, one, or two of which one hides a part of the other. Objects of different cells never touch. Scene `index` of a
split is a function of (split, seed, index) only.

Combinations in `HELD_OUT`, such as a purple star, are in no scene of the splits train, val and test, and in every scene
of the split compositional. A hash of a scene's content without the jitter decides which of the other splits it is in.
"""

import hashlib
import random
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal, get_args

Split = Literal["train", "val", "test", "compositional"]

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange")
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "medium", "large")
CELLS = (
    *("top left", "top center", "top right"),
    *("center left", "center", "center right"),
    *("bottom left", "bottom center", "bottom right"),
)
BACKGROUNDS = ("white", "gray", "pink")
MAX_OBJECTS = 5
CELL_PX = 32
RADIUS_PX = {"small": 6, "medium": 9, "large": 12}
EXTENT = 1.15
"""No part of a shape is farther from its centre than this many radii."""
HELD_OUT = frozenset(
    {
        *(("red", "cross"), ("green", "diamond"), ("blue", "triangle"), ("yellow", "square"), ("purple", "star")),
        *(("cyan", "circle"), ("orange", "triangle"), ("striped", "star"), ("dotted", "square")),
    }
)
"""(color or texture, shape) of the objects that only the split compositional has."""

_JITTER_PX = 2
# How far the body of a shape of radius one goes from its centre along a diagonal, up and down. Tips and corners go
# farther: an overlap of no more than a tip would not show which of the two is in front.
_REACH = {
    "circle": (1.0, 1.0),
    "square": (1.1, 1.1),
    "triangle": (0.47, 0.85),
    "star": (0.57, 0.85),
    "diamond": (0.64, 0.64),
    "cross": (0.75, 0.75),
}
_BUCKETS: dict[str, range] = {"train": range(80), "val": range(80, 90), "test": range(90, 100)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One shape: what it is, its cell, and its offset from the cell's centre in pixels."""

    shape: str
    color: str
    texture: str
    size: str
    cell: str
    offset_px: tuple[int, int]

    @property
    def center_px(self) -> tuple[int, int]:
        """(x, y) of the centre in the image."""
        row, column = divmod(CELLS.index(self.cell), 3)
        dx, dy = self.offset_px
        return column * CELL_PX + CELL_PX // 2 + dx, row * CELL_PX + CELL_PX // 2 + dy

    @property
    def is_held_out(self) -> bool:
        """Whether only the split compositional may have it."""
        return bool({(self.color, self.shape), (self.texture, self.shape)} & HELD_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene graph. `objects` are in the order of drawing: of two in a cell, the second hides a part of the first."""

    objects: tuple[SceneObject, ...]
    background: str

    @property
    def is_held_out(self) -> bool:
        """Whether it has an object that only the split compositional may have."""
        return any(o.is_held_out for o in self.objects)

    def to_json(self) -> dict[str, Any]:
        """The scene as JSON values; `from_json` reads it back."""
        return {"background": self.background, "objects": [asdict(o) for o in self.objects]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Scene":
        """The scene of a value that `to_json` returned."""
        fields: list[dict[str, Any]] = [{**o, "offset_px": tuple(o["offset_px"])} for o in value["objects"]]
        return Scene(objects=tuple(SceneObject(**f) for f in fields), background=value["background"])


def split_of(scene: Scene) -> Split:
    """The only split that may contain this scene, decided by its content without the jitter."""
    if scene.is_held_out:
        return "compositional"
    objects = [f"{o.shape} {o.color} {o.texture} {o.size} {o.cell}" for o in scene.objects]
    content = "|".join([scene.background, *objects])
    bucket = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8]) % 100
    return next(split for split in get_args(Split) if bucket in _BUCKETS[split])


def draw_scene(split: Split, seed: int, index: int) -> Scene:
    """Scene number `index` of `split` for `seed`.

    Raises ValueError for an unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    rng = random.Random(f"shapes-2/{split}/{seed}/{index}")
    while True:
        scene = _draw(rng, held_out=split == "compositional")
        if split_of(scene) == split and _is_clear(scene):
            return scene


def swapped(scene: Scene, rng: random.Random) -> Scene | None:
    """The scene with one attribute of two of its objects exchanged: places, colors, textures or sizes.

    None if no exchange gives another scene of the same split with objects that do not touch.
    """
    found: list[Scene] = []
    for (i, a), (j, b) in combinations(enumerate(scene.objects), 2):
        for name in ("cell", "color", "texture", "size"):
            if getattr(a, name) == getattr(b, name):
                continue
            objects = list(scene.objects)
            if name == "cell":
                objects[i] = replace(a, cell=b.cell, offset_px=b.offset_px)
                objects[j] = replace(b, cell=a.cell, offset_px=a.offset_px)
                objects.sort(key=lambda o: CELLS.index(o.cell))
            else:
                objects[i] = replace(a, **{name: getattr(b, name)})
                objects[j] = replace(b, **{name: getattr(a, name)})
            other = replace(scene, objects=tuple(objects))
            if split_of(other) == split_of(scene) and _is_clear(other):
                found.append(other)
    return rng.choice(found) if found else None


def _draw(rng: random.Random, *, held_out: bool) -> Scene:
    """Any scene; without held-out combinations unless `held_out`. Half of the scenes repeat a shape or a color."""
    count = rng.randint(1, MAX_OBJECTS)
    stacked = count > 1 and rng.random() < 0.4
    cells = sorted(rng.sample(range(len(CELLS)), count - stacked))
    if stacked:
        cells = sorted([*cells, rng.choice(cells)])
    theme: dict[str, str] = {}
    if rng.random() < 0.5:
        theme = rng.choice([{"shape": rng.choice(SHAPES)}, {"color": rng.choice(COLORS)}])
    objects: list[SceneObject] = []
    while len(objects) < count:
        look = {
            "shape": rng.choice(SHAPES),
            "color": rng.choice(COLORS),
            "texture": rng.choice(TEXTURES),
            "size": rng.choice(SIZES),
        }
        if rng.random() < 0.7:
            look |= theme
        offset = (rng.randint(-_JITTER_PX, _JITTER_PX), rng.randint(-_JITTER_PX, _JITTER_PX))
        o = SceneObject(**look, cell=CELLS[cells[len(objects)]], offset_px=offset)
        if held_out or not o.is_held_out:
            objects.append(o)
    for i in range(count - 1):
        if cells[i] == cells[i + 1]:
            objects[i : i + 2] = _overlapping(objects[i], objects[i + 1], rng)
    return Scene(objects=tuple(objects), background=rng.choice(BACKGROUNDS))


def _overlapping(back: SceneObject, front: SceneObject, rng: random.Random) -> list[SceneObject]:
    """The two objects moved apart along a diagonal, so that `front` hides a part of `back`."""
    x, y = rng.choice((-1, 1)), rng.choice((-1, 1))
    apart = _apart_px(back, front, down=y > 0)
    near = apart // 2
    far = apart - near
    return [replace(back, offset_px=(-x * near, -y * near)), replace(front, offset_px=(x * far, y * far))]


def _apart_px(back: SceneObject, front: SceneObject, *, down: bool) -> int:
    """How far apart, along either axis, `front` is from `back` to hide a part of it; tests measure the hidden parts."""
    radii = RADIUS_PX[back.size], RADIUS_PX[front.size]
    touching = _REACH[back.shape][down] * radii[0] + _REACH[front.shape][not down] * radii[1]
    return round((touching - 3 - min(radii) / 4) / 2**0.5)


def _is_clear(scene: Scene) -> bool:
    """Whether the image has every object whole, objects of different cells do not touch, and those of a cell overlap.

    Of two objects in a cell the first is hidden in part, but never as a whole.
    """
    for o in scene.objects:
        reach = EXTENT * RADIUS_PX[o.size]
        if min(o.center_px) < reach or max(o.center_px) > 3 * CELL_PX - reach:
            return False
    for a, b in combinations(scene.objects, 2):
        (ax, ay), (bx, by) = a.center_px, b.center_px
        reach = EXTENT * (RADIUS_PX[a.size] + RADIUS_PX[b.size])
        if a.cell != b.cell and max(abs(ax - bx), abs(ay - by)) <= reach:
            return False
        if a.cell == b.cell and abs(ay - by) != _apart_px(a, b, down=by > ay):
            return False
    return True
