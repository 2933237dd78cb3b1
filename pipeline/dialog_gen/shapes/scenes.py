"""Scene graphs of the embedded world, drawn from a seed.

A scene has one to three outlined shapes, at most one per quadrant, on a plain background. Scene `index` of a split is a
function of (split, seed, index) only, so any scene can be drawn without the scenes before it. A hash of a scene's
content without the jitter decides its split, so no scene is in two splits, whatever the seeds.
"""

import hashlib
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Split = Literal["train", "val", "test"]

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "star")
SIZES = ("small", "large")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
BACKGROUNDS = ("white", "gray", "pink")
MAX_OBJECTS = 3
JITTER_PX = 2

# Content hashes fall into 100 buckets: 80 for train, 10 for val, 10 for test.
_BUCKETS: dict[Split, range] = {"train": range(80), "val": range(80, 90), "test": range(90, 100)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One shape: what it is, its quadrant, and its offset from the quadrant's centre in pixels."""

    shape: str
    color: str
    size: str
    position: str
    offset_px: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A scene graph. `objects` are ordered by position (reading order)."""

    objects: tuple[SceneObject, ...]
    background: str

    def to_json(self) -> dict[str, Any]:
        """The scene as JSON values; `from_json` reads it back."""
        return {"background": self.background, "objects": [asdict(o) for o in self.objects]}

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Scene":
        """The scene of a value that `to_json` returned."""
        fields: list[dict[str, Any]] = [{**o, "offset_px": tuple(o["offset_px"])} for o in value["objects"]]
        objects = tuple(SceneObject(**f) for f in fields)
        return Scene(objects=objects, background=value["background"])


def split_of(scene: Scene) -> Split:
    """The only split that may contain this scene, decided by its content without the jitter."""
    content = [scene.background, *(f"{o.shape} {o.color} {o.size} {o.position}" for o in scene.objects)]
    bucket = int.from_bytes(hashlib.sha256("|".join(content).encode()).digest()[:8]) % 100
    return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def draw_scene(split: Split, seed: int, index: int) -> Scene:
    """Scene number `index` of `split` for `seed`.

    Raises ValueError for an unknown split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    rng = random.Random(f"shapes/{split}/{seed}/{index}")
    while True:
        positions = sorted(rng.sample(range(len(POSITIONS)), rng.randint(1, MAX_OBJECTS)))
        scene = Scene(
            objects=tuple(
                SceneObject(
                    shape=rng.choice(SHAPES),
                    color=rng.choice(COLORS),
                    size=rng.choice(SIZES),
                    position=POSITIONS[p],
                    offset_px=(rng.randint(-JITTER_PX, JITTER_PX), rng.randint(-JITTER_PX, JITTER_PX)),
                )
                for p in positions
            ),
            background=rng.choice(BACKGROUNDS),
        )
        if split_of(scene) == split:
            return scene
