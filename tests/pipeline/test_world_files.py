import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dialog_gen.core.files import replacing
from dialog_gen.shapes.files import ShapesSubset, _human_answers, write_files
from dialog_gen.shapes.language import ANSWERS, DESCRIBE_QUESTION, QUESTION_KINDS, judge, web_caption
from dialog_gen.shapes.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, draw_scene
from dialog_gen.shapes.worlds import FIRST

LIMIT = 60
SUBSET = ShapesSubset(split="val", seed=5, limit=LIMIT, shard_size=16)
SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att")
MMVP = (
    "Color and Appearance", "Positional and Relational Context", "Presence of Specific Features", "Quantity and Count",
)  # fmt: skip
NAMES = [
    "choices/aro/captions.json",
    "choices/aro/visual_genome_attribution.json",
    "choices/aro/visual_genome_relation.json",
    *(f"choices/mmvp-vlm/MLLM_VLM Images/{kind}/" for kind in MMVP),
    "choices/mmvp-vlm/Questions.csv",
    "choices/negbench/mcq.csv",
    *(f"choices/sugarcrepe{pp}/{kind}.json" for pp in ("-pp", "") for kind in SUGARCREPE),
    "choices/valse/counting.json",
    "choices/valse/existence.json",
    "choices/winoground/examples.jsonl",
    "classification/classes.txt",
    "classification/labels_shapes_val.json",
    "classification/templates.txt",
    "retrieval/captions_shapes_val.json",
    "retrieval/descriptions_shapes_val.jsonlines",
    "truth.jsonl",
    "vqa/MultipleChoice_shapes_val_questions.json",
    "vqa/OpenEnded_shapes_val_questions.json",
    "vqa/shapes_val_annotations.json",
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder, SUBSET)
    return folder


def read(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / name).read_text())


def read_tree(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def truth(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]


def test_files_written_and_nothing_else(out: Path) -> None:
    # MMVP-VLM's images count as one; test_world_choices looks at each.
    names = {re.sub(r"\d+\.jpg$", "", name) for name in read_tree(out)}
    assert sorted(names) == NAMES


def test_same_subset_same_bytes(out: Path, tmp_path: Path) -> None:
    write_files(tmp_path, SUBSET)
    assert read_tree(tmp_path) == read_tree(out)


def test_a_shorter_subset_is_the_beginning_of_a_longer_one(out: Path, tmp_path: Path) -> None:
    write_files(tmp_path, ShapesSubset(split="val", seed=5, limit=10, shard_size=16))
    assert truth(tmp_path) == truth(out)[:10]
    for name in [name for name in NAMES if "questions" in name]:
        assert read(tmp_path, name)["questions"] == read(out, name)["questions"][:30]


def test_image_ids_are_those_of_img2dataset() -> None:
    # As seen in real tars of these shard sizes; test_world_fetch downloads some.
    subset = ShapesSubset(split="val", seed=0, limit=3000, shard_size=1024)
    assert [subset.image_id(i) for i in (12, 2048, 2999)] == ["00000/000000012", "00002/000020000", "00002/000020951"]
    assert SUBSET.image_id(17) == "00001/0000101"
    assert list(SUBSET.shards()) == ["00000", "00001", "00002", "00003"]
    assert SUBSET.shards()["00003"] == range(48, 60)


def test_truth(out: Path) -> None:
    records = truth(out)
    assert [r["index"] for r in records] == list(range(LIMIT))
    assert all(set(r) == {"image_id", "index", "scene"} for r in records)
    assert len({r["image_id"] for r in records}) == LIMIT
    assert all(Scene.from_json(r["scene"]) == draw_scene("val", 5, r["index"]) for r in records)


def test_question_formats(out: Path) -> None:
    head = {"info", "task_type", "data_type", "data_subtype", "license", "questions"}
    keys = {"image_id", "question", "question_id"}
    open_ended, multiple = (read(out, f"vqa/{p}_shapes_val_questions.json") for p in ("OpenEnded", "MultipleChoice"))
    assert set(open_ended) == set(multiple) == head
    assert (open_ended["task_type"], multiple["task_type"]) == ("Open-Ended", "Multiple-Choice")
    assert (open_ended["data_type"], open_ended["data_subtype"]) == ("shapes", "val")
    assert all(set(q) == keys for q in open_ended["questions"])
    assert all(set(q) == keys | {"multiple_choices"} for q in multiple["questions"])
    assert [{k: q[k] for k in keys} for q in multiple["questions"]] == open_ended["questions"]
    assert len({q["question_id"] for q in open_ended["questions"]}) == 3 * LIMIT
    assert Counter(q["image_id"] for q in open_ended["questions"]) == dict.fromkeys(range(LIMIT), 3)


def test_annotation_format(out: Path) -> None:
    file = read(out, "vqa/shapes_val_annotations.json")
    assert set(file) == {"info", "data_type", "data_subtype", "license", "annotations"}
    keys = {"question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers"}
    for annotation in file["annotations"]:
        assert set(annotation) == keys
        assert annotation["answer_type"] in {"yes/no", "number", "other"}
        assert annotation["question_type"] in {k.vqa_type for k in QUESTION_KINDS.values()}
        assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
        for answer in annotation["answers"]:
            assert set(answer) == {"answer", "answer_confidence", "answer_id"}
            assert answer["answer_confidence"] in {"yes", "maybe", "no"}
            assert answer["answer"] in ANSWERS
    slips = [a["answer"] != n["multiple_choice_answer"] for n in file["annotations"] for a in n["answers"]]
    assert 0.02 < sum(slips) / len(slips) < 0.09


def test_questions_annotations_and_truth_belong_together(out: Path) -> None:
    questions = read(out, "vqa/MultipleChoice_shapes_val_questions.json")["questions"]
    annotations = read(out, "vqa/shapes_val_annotations.json")["annotations"]
    scenes = [Scene.from_json(r["scene"]) for r in truth(out)]
    for question, annotation in zip(questions, annotations, strict=True):
        assert question["question_id"] == annotation["question_id"]
        assert question["image_id"] == annotation["image_id"]
        scene, choices = scenes[question["image_id"]], question["multiple_choices"]
        assert len(choices) == len(set(choices)) == 18
        assert set(choices) <= set(ANSWERS)
        true = annotation["multiple_choice_answer"]
        assert [c for c in choices if judge(scene, question["question"], c)] == [true]
        [(majority, count), *_] = Counter(a["answer"] for a in annotation["answers"]).most_common()
        assert (majority, count > 5) == (true, True)


def test_choices_hold_all_answers_of_the_kind(out: Path) -> None:
    groups = [("yes", "no"), tuple("0123"), COLORS, SHAPES, POSITIONS, SIZES, BACKGROUNDS]
    questions = read(out, "vqa/MultipleChoice_shapes_val_questions.json")["questions"]
    annotations = read(out, "vqa/shapes_val_annotations.json")["annotations"]
    places: Counter[int] = Counter()
    for question, annotation in zip(questions, annotations, strict=True):
        true = annotation["multiple_choice_answer"]
        group = next(g for g in groups if true in g)
        assert set(group) <= set(question["multiple_choices"])
        assert {a["answer"] for a in annotation["answers"]} <= set(group)
        places[question["multiple_choices"].index(true)] += 1
    assert len(places) > 12  # the truth may stand anywhere


def test_the_truth_stays_the_majority_among_careless_annotators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialog_gen.shapes.files._SLIP_RATE", 1.0)
    answers = [a["answer"] for a in _human_answers(FIRST, "red", random.Random(0))]
    assert answers.count("red") == 6


def test_caption_format(out: Path) -> None:
    file = read(out, "retrieval/captions_shapes_val.json")
    assert set(file) == {"info", "licenses", "images", "annotations"}
    assert all(
        set(i) == {"id", "file_name", "height", "width", "coco_url", "license"}
        and (i["height"], i["width"], i["license"]) == (64, 64, file["licenses"][0]["id"])
        for i in file["images"]
    )
    assert [i["file_name"] for i in file["images"]] == [f"{r['image_id']}.jpg" for r in truth(out)]
    assert [i["id"] for i in file["images"]] == [r["index"] for r in truth(out)]
    assert all(set(a) == {"id", "image_id", "caption"} for a in file["annotations"])
    assert Counter(a["image_id"] for a in file["annotations"]) == dict.fromkeys(range(LIMIT), 5)
    assert len({a["id"] for a in file["annotations"]}) == 5 * LIMIT


def test_descriptions_say_all_and_nothing_else(out: Path) -> None:
    lines = (out / "retrieval/descriptions_shapes_val.jsonlines").read_text().splitlines()
    for line, record in zip(lines, truth(out), strict=True):
        described, scene = json.loads(line), record["scene"]
        assert (described["image_file"], described["split"]) == (f"{record['image_id']}.jpg", "val")
        first, *sentences = described["description"].removesuffix(".").split(". ")
        number, background = re.fullmatch(r"The picture shows (\w+) objects? on a (\w+) background", first).groups()  # type: ignore[union-attr]
        assert (["one", "two", "three"].index(number) + 1, background) == (len(scene["objects"]), scene["background"])
        empty = set(POSITIONS)
        for o in scene["objects"]:
            sentences.remove(f"There is a {o['size']} {o['color']} {o['shape']} in the {o['position']}")
            empty.discard(o["position"])
        assert len(sentences) == bool(empty)
        assert set(re.findall("|".join(POSITIONS), " ".join(sentences))) == empty


def test_labels_and_truth_belong_together(out: Path) -> None:
    labels = read(out, "classification/labels_shapes_val.json")
    wanted: dict[str, str] = {}
    for record in truth(out):
        found = [f"{o['color']} {o['shape']}" for o in record["scene"]["objects"] if o["size"] == "large"]
        if len(found) == 1:
            wanted[record["image_id"]] = found[0]
    assert labels == wanted
    assert 0.3 < len(labels) / LIMIT < 0.6
    classes = dict(line.split("\t") for line in (out / "classification/classes.txt").read_text().splitlines())
    assert len(classes) == 24
    assert set(labels.values()) <= set(classes)
    for record in truth(out):
        scene = Scene.from_json(record["scene"])
        # True of the scene, and of none of its other objects.
        fitting = [name for name, text in classes.items() if judge(scene, DESCRIBE_QUESTION, f"a {text}")]
        if record["image_id"] in labels:
            assert fitting == [labels[record["image_id"]]]


def test_class_templates_are_the_web_captions_of_an_object(out: Path) -> None:
    templates = (out / "classification/templates.txt").read_text().splitlines()
    scene = Scene(objects=(draw_scene("val", 5, 0).objects[0],), background="white")
    name = f"{scene.objects[0].color} {scene.objects[0].shape}"
    captions = {web_caption(scene, random.Random(n)) for n in range(200)}
    assert {template.format(name) for template in templates} <= captions
    assert len(templates) == 5


def test_no_labels_are_still_json(tmp_path: Path) -> None:
    seed = next(seed for seed in range(99) if {o.size for o in draw_scene("val", seed, 0).objects} == {"small"})
    write_files(tmp_path, ShapesSubset(split="val", seed=seed, limit=1, shard_size=16))
    assert read(tmp_path, "classification/labels_shapes_val.json") == {}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as part:
        part.write_text("half \udc80", encoding="utf-8")
    assert path.read_text() == "old"
