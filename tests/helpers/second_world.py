"""A second reading of the world `shapes-2`, from its pixels, which shares no code with the world but its words.

`seen` reads the objects of a scene off rendered images: an object's pixels are those that change when it is left out.
`statement` and `reply` are a second reading of the world's sentences.
"""

import re
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dialog_gen.shapes.second.render import render
from dialog_gen.shapes.second.scenes import CELLS, COLORS, SHAPES, SIZES, TEXTURES, Scene

Pixels = npt.NDArray[np.int_]

# --- what is seen in the pixels

PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (245, 220, 50),
    "purple": (140, 50, 170),
    "cyan": (70, 210, 230),
    "orange": (250, 140, 30),
}
# The longer side of the box around a shape of radius one.
EXTENTS = {"circle": 2, "square": 1.76, "triangle": 1.9, "diamond": 2.3, "cross": 2, "star": 2.19}
BACKGROUND = {(255, 255, 255): "white", (150, 150, 150): "gray", (255, 190, 210): "pink"}


@dataclass(frozen=True)
class Seen:
    shape: str
    color: str
    texture: str
    size: str
    cell: str
    x: float
    y: float
    in_front_of: frozenset[int]
    """Numbers of the objects of which it hides a part."""
    visible: float
    """Fraction of its pixels that are not hidden."""


def pixels(scene: Scene) -> Pixels:
    return np.asarray(render(scene)).astype(int)


def background(scene: Scene) -> str:
    return BACKGROUND[tuple(int(value) for value in pixels(scene)[0, 0])]


def changed(a: Pixels, b: Pixels) -> npt.NDArray[np.bool_]:
    return np.abs(a - b).max(-1) > 12


def _distance(a: Pixels, b: Pixels, where: npt.NDArray[np.bool_]) -> int:
    return int(np.abs(a - b)[where].sum())


@cache
def seen(scene: Scene) -> tuple[Seen, ...]:
    image, empty = pixels(scene), pixels(replace(scene, objects=()))
    found: list[Seen] = []
    single = [pixels(replace(scene, objects=(o,))) for o in scene.objects]
    whole = [changed(alone, empty) for alone in single]
    left = [
        changed(pixels(replace(scene, objects=(*scene.objects[:i], *scene.objects[i + 1 :]))), image)
        for i in range(len(whole))
    ]
    for i, mask in enumerate(whole):
        ys, xs = np.nonzero(mask)
        top, bottom, west, east = ys.min(), ys.max(), xs.min(), xs.max()
        x, y = float(west + east + 1) / 2, float(top + bottom + 1) / 2
        alone = single[i][top : bottom + 1, west : east + 1]
        # Where two overlap, the image is that of the one in front.
        shared = {j: whole[i] & whole[j] for j in range(len(whole)) if j != i}
        far = {j: (_distance(image, single[i], m), _distance(image, single[j], m)) for j, m in shared.items()}
        over = frozenset(j for j, (mine, other) in far.items() if mine < other)
        cell = CELLS[int(y // 32) * 3 + int(x // 32)]
        found.append(
            Seen(*_look(alone, mask[top : bottom + 1, west : east + 1]), cell, x, y, over, left[i].sum() / mask.sum())
        )
    return tuple(found)


def _look(part: Pixels, mask: npt.NDArray[np.bool_]) -> tuple[str, str, str, str]:
    """Shape, color, texture and size of an object alone in its box."""
    height, width = mask.shape
    v, u = np.mgrid[0:height, 0:width]
    u, v = (2 * u + 1) / width - 1, (2 * v + 1) / height - 1
    angle = (np.arctan2(u, -v + 0.05) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5
    tip = (
        1.05
        * 0.48
        * np.sin(np.pi / 5)
        / (0.48 * np.sin(np.pi / 5) * np.cos(angle) + (1.05 - 0.48 * np.cos(np.pi / 5)) * np.abs(np.sin(angle)))
    )
    forms = {
        "circle": u**2 + v**2 <= 1,
        "square": np.ones_like(mask),
        "triangle": np.abs(u) <= (v + 1) / 2,
        "diamond": np.abs(u) + np.abs(v) <= 1,
        "cross": np.minimum(np.abs(u), np.abs(v)) <= 0.4,
        "star": np.hypot(u, v - 0.05) <= tip,
    }
    shape = max(forms, key=lambda name: (forms[name] & mask).sum() / (forms[name] | mask).sum())
    inside = part[mask].reshape(-1, 3)
    ink = inside[inside.max(-1) > 60]
    shades = {(name, dark): np.array(rgb) * (0.45 if dark else 1) for name, rgb in PALETTE.items() for dark in (0, 1)}
    counts = {key: (np.abs(ink - rgb).max(-1) < 25).sum() for key, rgb in shades.items()}
    color, _ = max(counts, key=lambda key: counts[key] if not key[1] else -1)
    # An outline's edge may be as dark as a mark of a texture, but not in a run or block of four pixels.
    exact = np.abs(part - (np.array(PALETTE[color]) * 0.45).astype(int)).max(-1) <= 6
    runs = max(len(run) for row in exact for run in "".join("x" if d else " " for d in row).split(" "))
    block = exact[1:, 1:] & exact[:-1, 1:] & exact[1:, :-1] & exact[:-1, :-1]
    texture = "striped" if runs >= 4 else "dotted" if block.any() else "plain"
    size = SIZES[int(np.searchsorted([7.5, 10.5], max(height, width) / EXTENTS[shape]))]
    return shape, color, texture, size


# --- a second reading of the world's sentences

NUMBERS = ["no", "one", "two", "three", "four", "five"]
_WORDS = (("color", COLORS), ("shape", SHAPES), ("texture", TEXTURES), ("size", SIZES))
WORD = {word: name for name, words in _WORDS for word in words}
RELATION = "left of|right of|above|below|in front of|behind"


def fitting(found: tuple[Seen, ...], name: str) -> list[int]:
    """Numbers of the objects that a name such as "a large red circle", "crosses" or "objects" fits."""
    words = re.sub(r"^(an?|the) ", "", name).split()
    singular = "cross" if words[-1] in ("cross", "crosses") else words[-1].removesuffix("s")
    said = [word for word in (*words[:-1], singular) if word != "object"]
    assert all(word in WORD for word in said), name
    return [i for i, o in enumerate(found) if all(getattr(o, WORD[word]) == word for word in said)]


def related(found: tuple[Seen, ...], a: int, relation: str, b: int) -> bool | None:
    if relation in ("in front of", "behind"):
        order = (b in found[a].in_front_of) - (a in found[b].in_front_of)
        return None if order == 0 else (order > 0) == (relation == "in front of")
    if any(x in found[y].in_front_of for x, y in ((a, b), (b, a))):
        return None
    dx, dy = found[b].x - found[a].x, found[b].y - found[a].y
    away = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    # Objects of one column are at most 13 pixels apart along x, those of different columns at least 19.
    return None if abs(away) < 16 else away > 0


def statement(s: Scene, text: str) -> bool:
    """Whether a caption is true: "a" says that there is one, several nouns need as many objects."""
    found = seen(s)
    if match := re.fullmatch(r"(.+), but no (.+)", text):
        return statement(s, match[1]) and not fitting(found, match[2])
    if match := re.fullmatch(r"(.+) on (?:a )?(\w+) background", text):
        return background(s) == match[2] and statement(s, match[1])
    if match := re.fullmatch(r"a (\w+) picture with (.+)", text):
        return background(s) == match[1] and statement(s, match[2])
    if match := re.fullmatch(rf"(.+), where the (.+) is ({RELATION}) the (.+)", text):
        (a,), (b,) = fitting(found, match[2]), fitting(found, match[4])
        return statement(s, match[1]) and related(found, a, match[3], b) is True
    if match := re.fullmatch(r"(\w+) objects?: (.+)", text):
        return NUMBERS.index(match[1]) == len(found) and statement(s, match[2])
    if match := re.fullmatch(r"there is no (.+)", text):
        return not fitting(found, match[1])
    if match := re.fullmatch(r"there is (.+) in the image", text):
        return statement(s, match[1])
    if match := re.fullmatch(r"(.+) but no (.+)", text):
        return bool(fitting(found, match[1])) and not fitting(found, match[2])
    if match := re.fullmatch(r"neither (.+) nor (.+)", text):
        return not fitting(found, match[1]) and not fitting(found, match[2])
    if match := re.fullmatch(rf"(.+) ({RELATION}) (.+)", text):
        pairs = [(a, b) for a in fitting(found, match[1]) for b in fitting(found, match[3]) if a != b]
        return any(related(found, a, match[2], b) is True for a, b in pairs)
    if match := re.fullmatch(rf"({'|'.join(NUMBERS)}) (.+)", text):
        return len(fitting(found, match[2])) == NUMBERS.index(match[1])
    placed = [re.fullmatch(r"(.+?)(?: in the (.+))?", part) for part in re.split(r", | and ", text)]
    sets = [[i for i in fitting(found, m[1]) if m[2] in (None, found[i].cell)] for m in placed if m]
    # Hall's condition: different objects for all the names.
    return all(
        len({i for chosen in group for i in chosen}) >= size
        for size in range(1, len(sets) + 1)
        for group in combinations(sets, size)
    )


def reply(s: Scene, question: str) -> str | None:
    """The answer to a question, None if it is not well-posed."""
    found = seen(s)
    if question == "What color is the background?":
        return background(s)
    if match := re.fullmatch(r"How many objects are not (\w+)\?", question):
        return str(sum(o.color != match[1] for o in found))
    if match := re.fullmatch(r"How many (.+) are there\?", question):
        return str(len(fitting(found, match[1])))
    if match := re.fullmatch(r"Is there (any|no) (.+)\?", question):
        return "yes" if bool(fitting(found, match[2])) == (match[1] == "any") else "no"
    if match := re.fullmatch(rf"Is the (.+) ({RELATION}) the (.+)\?", question):
        a, b = fitting(found, match[1]), fitting(found, match[3])
        holds = related(found, a[0], match[2], b[0]) if len(a) == len(b) == 1 else None
        return None if holds is None else "yes" if holds else "no"
    attribute = "shape"
    if match := re.fullmatch(rf"What shape is ({RELATION}) the (.+)\?", question):
        b = fitting(found, match[2])
        numbers = [a for a in range(len(found)) if len(b) == 1 and a != b[0] and related(found, a, match[1], b[0])]
    elif match := re.fullmatch(r"What shape is in the (.+)\?", question):
        numbers = [i for i, o in enumerate(found) if o.cell == match[1]]
    elif match := re.fullmatch(r"Where is the (.+)\?", question):
        attribute, numbers = "cell", fitting(found, match[1])
    else:
        match = re.fullmatch(r"What (\w+) (?:is|does) the (.+?)(?: have)?\?", question)
        assert match, question
        attribute, numbers = match[1], fitting(found, match[2])
    return getattr(found[numbers[0]], attribute) if len(numbers) == 1 else None
