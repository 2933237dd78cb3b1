"""Files of benchmarks that compare a few texts with an image, or two texts with two images, about the world's scenes.

They have the formats in which the benchmarks are published, so that `dialog-eval choice` reads them in the same way:

    sugarcrepe/*.json, sugarcrepe-pp/*.json    a caption against one with an attribute, shape or relation changed
    aro/visual_genome_relation.json, aro/visual_genome_attribution.json, aro/captions.json (for aro-trigrams)
    valse/existence.json, valse/counting.json  "there is no ..." and numbers, against their opposite
    negbench/mcq.csv                           the true one of four sentences that affirm and deny
    winoground/examples.jsonl                  two scenes and two captions of the same words
    mmvp-vlm/Questions.csv                     two scenes, each with a statement that is false of the other one
    mmvp-vlm/MLLM_VLM Images/*/*.jpg           copies of its images, since MMVP-VLM numbers them

The scene graph decides that the right text is true and the wrong one false. An object is named by color and shape.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

from dialog_gen.shapes.language import retrieval_captions
from dialog_gen.shapes.render import IMAGE_SIZE_PX, render
from dialog_gen.shapes.scenes import COLORS, SHAPES, SIZES, Scene, SceneObject

_NUMBERS = ("no objects", "one object", "two objects", "three objects")
_CAPTIONS = 5
_MMVP_PAIRS = 15
_MMVP_JPEG_QUALITY = 95

_Noun = tuple[str, str]
"""Color and shape"""
_Pair = tuple[str, str]
"""A true text and a false one"""


class Scenes(Protocol):
    """The scenes 0 to `limit` - 1 of a split, with the pipeline's id of each image and random generators."""

    @property
    def split(self) -> str:
        """The name of the split."""
        ...

    @property
    def limit(self) -> int:
        """Number of scenes."""
        ...

    def scene(self, index: int) -> Any:
        """Scene number `index`."""
        ...

    def image_id(self, index: int) -> str:
        """The pipeline's id of an image."""
        ...

    def rng(self, purpose: str, index: int) -> random.Random:
        """A random generator for one purpose and one scene."""
        ...


class _Relation(NamedTuple):
    first: SceneObject
    name: str
    second: SceneObject

    def text(self) -> str:
        return f"the {_name(_noun(self.first))} is {self.name} the {_name(_noun(self.second))}"

    def phrase(self) -> str:
        return f"the {_name(_noun(self.first))} {self.name} the {_name(_noun(self.second))}"

    def turned(self) -> "_Relation":
        return _Relation(self.second, self.name, self.first)


def choice_files(scenes: Scenes) -> Iterator[tuple[str, Iterator[str] | bytes]]:
    """Path of each file, and its lines or the bytes of an image. The same scenes give the same ones."""
    for name, pair_of in _PAIRS.items():
        yield f"sugarcrepe/{name}.json", _object(_sugarcrepe(scenes, name, pair_of))
        yield f"sugarcrepe-pp/{name}.json", _list(_sugarcrepe_pp(scenes, name, pair_of))
    yield "aro/visual_genome_relation.json", _list(_aro_relation(scenes))
    yield "aro/visual_genome_attribution.json", _list(_aro_attribution(scenes))
    yield "aro/captions.json", _list(_captions(scenes))
    for name, pair_of in (("existence", _existence), ("counting", _counting)):
        yield f"valse/{name}.json", _object(_valse(scenes, name, pair_of))
    yield "negbench/mcq.csv", _negbench(scenes)
    yield "winoground/examples.jsonl", (json.dumps(record) for record in _winoground(scenes))
    statements = list(_mmvp(scenes))
    yield "mmvp-vlm/Questions.csv", _mmvp_questions(statements)
    for number, (kind, one) in enumerate(statements, 1):
        image = io.BytesIO()
        render(scenes.scene(one.number)).save(image, "JPEG", quality=_MMVP_JPEG_QUALITY)
        yield f"mmvp-vlm/MLLM_VLM Images/{kind}/{number}.jpg", image.getvalue()


def relations(scene: Scene) -> list[_Relation]:
    """All true relations between two objects that are the only ones of their color and shape.

    Of two objects, "to the left of" and "above" are each given once, where their quadrants say so.
    """
    single = _single(scene)
    found: list[_Relation] = []
    for first in single:
        for second in single:
            rows, columns = zip(first.position.split(), second.position.split(), strict=True)
            if columns == ("left", "right"):
                found.append(_Relation(first, "to the left of", second))
            if rows == ("top", "bottom"):
                found.append(_Relation(first, "above", second))
    return found


def _swap_att(scene: Scene, rng: random.Random) -> _Pair | None:
    pair = _swappable(scene, rng)
    if pair is None:
        return None
    first, second = pair
    return _listing(pair), _listing([(second[0], first[1]), (first[0], second[1])])


def _replace_att(scene: Scene, rng: random.Random) -> _Pair | None:
    return _with_one_replaced(scene, rng, lambda noun: [(color, noun[1]) for color in COLORS])


def _replace_obj(scene: Scene, rng: random.Random) -> _Pair | None:
    return _with_one_replaced(scene, rng, lambda noun: [(noun[0], shape) for shape in SHAPES])


def _replace_rel(scene: Scene, rng: random.Random) -> _Pair | None:
    found = relations(scene)
    if not found:
        return None
    relation = rng.choice(found)
    other = {"to the left of": "to the right of", "above": "below"}[relation.name]
    return relation.text(), relation._replace(name=other).text()


def _add_obj(scene: Scene, rng: random.Random) -> _Pair:
    nouns = _shuffled(scene, rng)
    return _listing(nouns), _listing([*nouns, rng.choice(_absent(scene))])


def _add_att(scene: Scene, rng: random.Random) -> _Pair | None:
    single = _single(scene)
    if not single:
        return None
    o = rng.choice(single)
    wrong = next(size for size in SIZES if size != o.size)
    return f"a {_name(_noun(o))}", f"a {wrong} {_name(_noun(o))}"


_PAIRS: dict[str, Callable[[Scene, random.Random], _Pair | None]] = {
    "add_att": _add_att,
    "add_obj": _add_obj,
    "replace_att": _replace_att,
    "replace_obj": _replace_obj,
    "replace_rel": _replace_rel,
    "swap_att": _swap_att,
}
"""SugarCrepe's name of a kind -> a true and a false caption of a scene, or None if the scene allows none."""


def _existence(scene: Scene, rng: random.Random) -> _Pair:
    if rng.random() < 0.5:
        noun = _name(_noun(rng.choice(scene.objects)))
        return f"there is a {noun} in the image", f"there is no {noun} in the image"
    noun = _name(rng.choice(_absent(scene)))
    return f"there is no {noun} in the image", f"there is a {noun} in the image"


def _counting(scene: Scene, rng: random.Random) -> _Pair:
    count = len(scene.objects)
    wrong = rng.choice([number for number in range(1, len(_NUMBERS)) if number != count])
    return _counted(count, scene), _counted(wrong, scene)


def _counted(count: int, scene: Scene) -> str:
    return f"there {'is' if count == 1 else 'are'} {_number_on(count, scene)}"


def _number_on(count: int, scene: Scene) -> str:
    return f"{_NUMBERS[count]} on a {scene.background} background"


def _drawn(
    scenes: Scenes, purpose: str, pair_of: Callable[[Scene, random.Random], _Pair | None]
) -> Iterator[tuple[int, _Pair]]:
    for index in range(scenes.limit):
        pair = pair_of(scenes.scene(index), scenes.rng(f"choices/{purpose}", index))
        if pair is not None:
            yield index, pair


def _sugarcrepe(scenes: Scenes, name: str, pair_of: Any) -> Iterator[tuple[str, Any]]:
    for number, (index, (caption, negative)) in enumerate(_drawn(scenes, name, pair_of)):
        yield str(number), {"filename": _file(scenes, index), "caption": caption, "negative_caption": negative}


def _sugarcrepe_pp(scenes: Scenes, name: str, pair_of: Any) -> Iterator[Any]:
    for number, (index, (caption, negative)) in enumerate(_drawn(scenes, name, pair_of)):
        yield {
            "id": number,
            "filename": _file(scenes, index),
            "caption": caption,
            "negative_caption": negative,
            "caption2": f"the picture shows that {caption}" if " is " in caption else f"the picture shows {caption}",
        }


def _aro_relation(scenes: Scenes) -> Iterator[Any]:
    for index in range(scenes.limit):
        for relation in relations(scenes.scene(index)):
            texts = {"true_caption": relation.text(), "false_caption": relation.turned().text()}
            yield {**_region(scenes, index), "relation_name": relation.name, **texts}


def _aro_attribution(scenes: Scenes) -> Iterator[Any]:
    for index in range(scenes.limit):
        pair = _swappable(scenes.scene(index), scenes.rng("choices/attribution", index))
        if pair is not None:
            (color, shape), (other_color, other_shape) = pair
            yield {
                **_region(scenes, index),
                "attributes": [color, other_color],
                "true_caption": f"the {color} {shape} and the {other_color} {other_shape}",
                "false_caption": f"the {other_color} {shape} and the {color} {other_shape}",
            }


def _captions(scenes: Scenes) -> Iterator[Any]:
    for index in range(scenes.limit):
        captions = retrieval_captions(scenes.scene(index), scenes.rng("choices/order", index), _CAPTIONS)
        yield {"image": _file(scenes, index), "caption": captions}


def _valse(scenes: Scenes, name: str, pair_of: Any) -> Iterator[tuple[str, Any]]:
    for index, (caption, foil) in _drawn(scenes, name, pair_of):
        yield (
            f"{name}_{index}",
            {
                "dataset": "shapes",
                "linguistic_phenomena": name,
                "image_file": _file(scenes, index),
                "caption": caption,
                "foil": foil,
                "mturk": {"foil": 0, "caption": 3, "other": 0},
            },
        )


def _negbench(scenes: Scenes) -> Iterator[str]:
    yield _csv_line(["image_path", "correct_answer", *(f"caption_{n}" for n in range(4)), "correct_answer_template"])
    for index in range(scenes.limit):
        scene, rng = scenes.scene(index), scenes.rng("choices/negbench", index)
        there, not_there = _name(_noun(rng.choice(scene.objects))), _name(rng.choice(_absent(scene)))
        right = {
            "positive": f"there is a {there}",
            "negative": f"there is no {not_there}",
            "hybrid": f"there is a {there} but no {not_there}",
        }
        kind = rng.choice(list(right))
        wrong = [f"there is a {not_there} but no {there}", f"there is a {not_there}", f"there is no {there}"]
        yield _csv_line([_file(scenes, index), 0, right[kind], *wrong, kind])


class _Opposed(NamedTuple):
    """A scene and a text that is true of it; the text of the scene that it is paired with is false of it."""

    number: int
    text: str


def _opposed(scenes: Scenes, texts_of: Callable[[Scene], Iterable[_Pair]]) -> Iterator[tuple[_Opposed, _Opposed]]:
    """Pairs a text of a scene with an earlier scene of which its opposite is true and this one is not.

    `texts_of` gives texts that are true of a scene, each with its opposite.
    """
    waiting: dict[_Pair, int] = {}
    for index in range(scenes.limit):
        scene = scenes.scene(index)
        for text, opposite in texts_of(scene):
            other = waiting.get((opposite, text))
            if other is None:
                waiting.setdefault((text, opposite), index)
            elif not _says(texts_of, scenes.scene(other), text) and not _says(texts_of, scene, opposite):
                del waiting[opposite, text]
                yield _Opposed(other, opposite), _Opposed(index, text)


def _says(texts_of: Callable[[Scene], Iterable[_Pair]], scene: Scene, text: str) -> bool:
    return any(text == one for one, _ in texts_of(scene))


def _winoground(scenes: Scenes) -> Iterator[Any]:
    tags: dict[str, str] = {}

    def texts_of(scene: Scene) -> Iterator[_Pair]:
        for tag, text, turned in _turnable(scene):
            tags[text] = tag
            yield text, turned

    for number, (first, second) in enumerate(_opposed(scenes, texts_of)):
        yield {
            "id": number,
            "image_0": _file(scenes, first.number),
            "image_1": _file(scenes, second.number),
            "caption_0": first.text,
            "caption_1": second.text,
            "collapsed_tag": tags[second.text],
        }


def _mmvp(scenes: Scenes) -> Iterator[tuple[str, _Opposed]]:
    """Type and statement; two after one another are a pair. Each type has as many as are published, if there are."""
    for kind, texts_of in _MMVP_TYPES.items():
        for pair in islice(_opposed(scenes, texts_of), _MMVP_PAIRS):
            yield from ((kind, one) for one in pair)


def _mmvp_questions(statements: list[tuple[str, _Opposed]]) -> Iterator[str]:
    yield _csv_line(["Question ID", "Type", "Statement"])
    for number, (kind, one) in enumerate(statements, 1):
        yield _csv_line([number, kind, one.text])


def _presence(scene: Scene) -> Iterator[_Pair]:
    for noun in dict.fromkeys(map(_noun, scene.objects)):
        yield f"objects, one of them a {_name(noun)}", f"objects, none of them a {_name(noun)}"
    for noun in _absent(scene):
        yield f"objects, none of them a {_name(noun)}", f"objects, one of them a {_name(noun)}"


def _quantity(scene: Scene) -> Iterator[_Pair]:
    count = len(scene.objects)
    for other in range(1, len(_NUMBERS)):
        if other != count:
            yield _number_on(count, scene), _number_on(other, scene)


def _places(scene: Scene) -> Iterator[_Pair]:
    for relation in relations(scene):
        yield relation.phrase(), relation.turned().phrase()


def _colors(scene: Scene) -> Iterator[_Pair]:
    return ((text, turned) for tag, text, turned in _turnable(scene) if tag == "Object")


_MMVP_TYPES: dict[str, Callable[[Scene], Iterable[_Pair]]] = {
    "Presence of Specific Features": _presence,
    "Quantity and Count": _quantity,
    "Positional and Relational Context": _places,
    "Color and Appearance": _colors,
}
"""MMVP-VLM's name of a type -> the texts of a scene, each with its opposite."""


def _turnable(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Tag, a true text, and the text of the same words in another order."""
    for relation in relations(scene):
        yield "Relation", relation.text(), relation.turned().text()
    nouns = sorted({_noun(o) for o in scene.objects})
    for place, first in enumerate(nouns):
        for second in nouns[place + 1 :]:
            if first[0] != second[0] and first[1] != second[1]:
                yield "Object", _both(first, second), _both((second[0], first[1]), (first[0], second[1]))


def _both(first: _Noun, second: _Noun) -> str:
    """The two nouns in the order of their shapes, so that swapped colors give the same words in another order."""
    return _listing(sorted([first, second], key=lambda noun: noun[1]))


def _with_one_replaced(scene: Scene, rng: random.Random, others_of: Callable[[_Noun], list[_Noun]]) -> _Pair | None:
    nouns = _shuffled(scene, rng)
    place = rng.randrange(len(nouns))
    others = [noun for noun in others_of(nouns[place]) if noun not in nouns]
    if not others:
        return None
    return _listing(nouns), _listing([*nouns[:place], rng.choice(others), *nouns[place + 1 :]])


def _swappable(scene: Scene, rng: random.Random) -> tuple[_Noun, _Noun] | None:
    """Two objects whose colors can be swapped so that the scene lacks one of the results."""
    nouns = _shuffled(scene, rng)
    for place, first in enumerate(nouns):
        for second in nouns[place + 1 :]:
            swapped = {(second[0], first[1]), (first[0], second[1])}
            if first[0] != second[0] and first[1] != second[1] and not swapped <= set(nouns):
                return first, second
    return None


def _absent(scene: Scene) -> list[_Noun]:
    """Objects that share their color or their shape with one of the scene, but are not in it."""
    nouns = {_noun(o) for o in scene.objects}
    colors, shapes = {color for color, _ in nouns}, {shape for _, shape in nouns}
    near = [(color, shape) for color in COLORS for shape in SHAPES if (color in colors) != (shape in shapes)]
    return [noun for noun in near if noun not in nouns]


def _single(scene: Scene) -> list[SceneObject]:
    nouns = [_noun(o) for o in scene.objects]
    return [o for o in scene.objects if nouns.count(_noun(o)) == 1]


def _shuffled(scene: Scene, rng: random.Random) -> list[_Noun]:
    return [_noun(o) for o in rng.sample(scene.objects, len(scene.objects))]


def _noun(o: SceneObject) -> _Noun:
    return o.color, o.shape


def _name(noun: _Noun) -> str:
    return " ".join(noun)


def _listing(nouns: Iterable[_Noun]) -> str:
    named = [f"a {_name(noun)}" for noun in nouns]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _file(scenes: Scenes, index: int) -> str:
    return f"{scenes.image_id(index)}.jpg"


def _region(scenes: Scenes, index: int) -> dict[str, Any]:
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": IMAGE_SIZE_PX, "bbox_h": IMAGE_SIZE_PX}
    return {"image_id": str(index), "image_path": _file(scenes, index), **box}


def _object(fields: Iterable[tuple[str, Any]]) -> Iterator[str]:
    return _enclosed("{", (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in fields), "}")


def _list(records: Iterable[Any]) -> Iterator[str]:
    return _enclosed("[", map(json.dumps, records), "]")


def _enclosed(begin: str, parts: Iterable[str], end: str) -> Iterator[str]:
    for number, part in enumerate(parts):
        yield ("," if number else begin) + part
        begin = ""
    yield begin + end


def _csv_line(values: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue()
