"""The world's files of choices: whether their texts are true, by a judge that shares no code with their writer."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dialog_gen.shapes.files import ShapesSubset, write_files
from dialog_gen.shapes.render import render
from dialog_gen.shapes.scenes import Scene

SUBSET = ShapesSubset(split="test", seed=2, limit=200, shard_size=64)
NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3}


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_files(folder, SUBSET)
    return folder / "choices"


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    return {f"{SUBSET.image_id(index)}.jpg": SUBSET.scene(index) for index in range(SUBSET.limit)}


def is_true(scene: Scene, text: str) -> bool:
    """Whether a text of these files is true of a scene."""
    text = re.sub(r"^the picture shows (that )?", "", text)
    if match := re.fullmatch(r"the (\w+ \w+) is (above|below|to the left of|to the right of) the (\w+ \w+)", text):
        return related(scene, *match.groups())
    if match := re.fullmatch(r"there (?:is|are) (\w+) objects? on a (\w+) background", text):
        return (NUMBERS[match[1]], match[2]) == (len(scene.objects), scene.background)
    if match := re.fullmatch(r"there is (a|no) (\w+ \w+)(?: but no (\w+ \w+))?(?: in the image)?", text):
        first = has(scene, [match[2]]) == (match[1] == "a")
        return first and (match[3] is None or not has(scene, [match[3]]))
    if match := re.fullmatch(r"(\w+) objects? on a (\w+) background", text):
        return (NUMBERS[match[1]], match[2]) == (len(scene.objects), scene.background)
    if match := re.fullmatch(r"objects, (one|none) of them a (\w+ \w+)", text):
        return has(scene, [match[2]]) == (match[1] == "one")
    if match := re.fullmatch(r"the (\w+ \w+) (above|to the left of) the (\w+ \w+)", text):
        return related(scene, *match.groups())
    return has(scene, re.findall(r"(?:a|the) ((?:(?:small|large) )?\w+ \w+)", text))


def has(scene: Scene, objects: list[str]) -> bool:
    """Whether these are different objects of the scene; a name may leave out the size."""
    assert objects
    named = Counter(" ".join(name.split()[-2:]) for name in objects)
    there = Counter(f"{o.color} {o.shape}" for o in scene.objects)
    sized = {f"{o.size} {o.color} {o.shape}" for o in scene.objects}
    return named <= there and all(name in sized for name in objects if len(name.split()) == 3)


def related(scene: Scene, first: str, relation: str, second: str) -> bool:
    """Whether it holds for some pair of objects, in the pixels of their centres' quadrants."""
    rows, columns = {"top": 0, "bottom": 1}, {"left": 0, "right": 1}
    places = [(f"{o.color} {o.shape}", *o.position.split()) for o in scene.objects]
    for name, row, column in places:
        for other, other_row, other_column in places:
            if (name, other) != (first, second):
                continue
            down, across = rows[other_row] - rows[row], columns[other_column] - columns[column]
            if {"above": down, "below": -down, "to the left of": across, "to the right of": -across}[relation] > 0:
                return True
    return False


def pairs(choices: Path) -> Iterator[tuple[str, str, list[str], list[str]]]:
    """File, image, true texts, false texts."""
    for path in sorted((choices / "sugarcrepe").iterdir()):
        for record in json.loads(path.read_text()).values():
            yield f"sugarcrepe {path.stem}", record["filename"], [record["caption"]], [record["negative_caption"]]
    for path in sorted((choices / "sugarcrepe-pp").iterdir()):
        for record in json.loads(path.read_text()):
            right = [record["caption"], record["caption2"]]
            yield f"sugarcrepe-pp {path.stem}", record["filename"], right, [record["negative_caption"]]
    for path in sorted((choices / "valse").iterdir()):
        for record in json.loads(path.read_text()).values():
            yield f"valse {path.stem}", record["image_file"], [record["caption"]], [record["foil"]]
    for name in ("relation", "attribution"):
        for record in json.loads((choices / "aro" / f"visual_genome_{name}.json").read_text()):
            yield f"aro {name}", record["image_path"], [record["true_caption"]], [record["false_caption"]]
    for row in csv.DictReader((choices / "negbench" / "mcq.csv").open()):
        texts = [row[f"caption_{n}"] for n in range(4)]
        right = texts.pop(int(row["correct_answer"]))
        yield "negbench", row["image_path"], [right], texts


def test_right_texts_are_true_and_wrong_ones_false(choices: Path, scenes: dict[str, Scene]) -> None:
    counts = Counter[str]()
    for name, image, right, wrong in pairs(choices):
        scene = scenes[image]
        assert [is_true(scene, text) for text in (*right, *wrong)] == [True] * len(right) + [False] * len(wrong), (
            name, scene, right, wrong,
        )  # fmt: skip
        counts[name] += 1
    assert len(counts) == 17
    assert min(counts.values()) >= 80


def test_winoground_has_the_same_words_and_one_truth_an_image(choices: Path, scenes: dict[str, Scene]) -> None:
    records = [json.loads(line) for line in (choices / "winoground" / "examples.jsonl").read_text().splitlines()]
    assert Counter(record["collapsed_tag"] for record in records).keys() == {"Object", "Relation"}
    assert len(records) >= 20
    for record in records:
        texts = [record["caption_0"], record["caption_1"]]
        assert sorted(texts[0].split()) == sorted(texts[1].split())
        truths = [[is_true(scenes[record[key]], text) for text in texts] for key in ("image_0", "image_1")]
        assert truths == [[True, False], [False, True]], record


def test_negbench_asks_all_kinds(choices: Path) -> None:
    def kind(text: str) -> str:
        return "hybrid" if " but no " in text else "negative" if text.startswith("there is no ") else "positive"

    rows = list(csv.DictReader((choices / "negbench" / "mcq.csv").open()))
    told = Counter(row["correct_answer_template"] for row in rows)
    assert told == Counter(kind(row["caption_0"]) for row in rows)
    assert min(told[name] for name in ("positive", "negative", "hybrid")) > 40
    for row in rows:
        assert sorted(kind(row[f"caption_{n}"]) for n in (1, 2, 3)) == ["hybrid", "negative", "positive"]


def test_mmvp_shows_each_statement_with_an_image_of_which_the_other_is_false(
    choices: Path, scenes: dict[str, Scene]
) -> None:
    # What scene an image shows is seen in its pixels: those of equal scenes are equal.
    drawn = {name: np.asarray(render(scene)).astype(int) for name, scene in scenes.items()}

    def shown(path: Path) -> Scene:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            seen = np.asarray(image).astype(int)
        return scenes[min(drawn, key=lambda name: int(np.abs(drawn[name] - seen).sum()))]

    rows = list(csv.reader((choices / "mmvp-vlm" / "Questions.csv").open()))[1:]
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    assert set(Counter(kind for _, kind, _ in rows).values()) == {30}
    for pair in zip(rows[::2], rows[1::2], strict=True):
        images = [choices / "mmvp-vlm" / "MLLM_VLM Images" / kind / f"{number}.jpg" for number, kind, _ in pair]
        truths = [[is_true(shown(image), text) for _, _, text in pair] for image in images]
        assert truths == [[True, False], [False, True]], pair
