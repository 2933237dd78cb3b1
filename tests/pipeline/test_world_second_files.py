"""The files and the download of the world `shapes-2`; and that the first world's files stay what they were."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import make_row, shard_of, write_shard
from helpers.second_world import reply, statement

from dialog_eval.data.choices.base import BENCHMARKS
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.writer import open_writer
from dialog_gen.download.manifests import DownloadRequest, Manifest, load_manifest
from dialog_gen.shapes.files import ShapesSubset, write_files
from dialog_gen.shapes.second.scenes import Scene, draw_scene
from dialog_gen.shapes.truth import load_scenes, measure_truth
from dialog_gen.shapes.worlds import SECOND

LIMIT = 40
SUBSET = ShapesSubset(split="compositional", seed=5, limit=LIMIT, shard_size=16, world=SECOND)
SCENES = [draw_scene("compositional", 5, i) for i in range(LIMIT)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder, SUBSET)
    return folder


def read(out: Path, name: str) -> Any:
    return json.loads((out / name).read_text())


def test_files_written_and_nothing_else(out: Path) -> None:
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        "choices/choices_shapes-2_compositional.json",
        "classification/classes.txt",
        "classification/labels_shapes-2_compositional.json",
        "classification/templates.txt",
        "retrieval/captions_shapes-2_compositional.json",
        "retrieval/descriptions_shapes-2_compositional.jsonlines",
        "retrieval/negated_captions_shapes-2_compositional.json",
        "truth.jsonl",
        "vqa/MultipleChoice_shapes-2_compositional_questions.json",
        "vqa/OpenEnded_shapes-2_compositional_questions.json",
        "vqa/shapes-2_compositional_annotations.json",
    ]


def test_answers_are_seen_and_are_among_18_choices(out: Path) -> None:
    questions = read(out, "vqa/MultipleChoice_shapes-2_compositional_questions.json")["questions"]
    annotations = read(out, "vqa/shapes-2_compositional_annotations.json")["annotations"]
    assert len(questions) == len(annotations) == 3 * LIMIT
    for question, annotation in zip(questions, annotations, strict=True):
        assert question["question_id"] == annotation["question_id"]
        truth = reply(SCENES[question["image_id"]], question["question"])
        assert truth == annotation["multiple_choice_answer"]
        assert len(set(question["multiple_choices"])) == 18
        assert truth in question["multiple_choices"]


@pytest.mark.parametrize("name", ["captions", "negated_captions"])
def test_captions_are_true(out: Path, name: str) -> None:
    file = read(out, f"retrieval/{name}_shapes-2_compositional.json")
    assert len(file["annotations"]) == 5 * LIMIT
    assert {(image["width"], image["height"]) for image in file["images"]} == {(96, 96)}
    assert all(statement(SCENES[a["image_id"]], a["caption"]) for a in file["annotations"])


def test_descriptions_are_true_and_name_every_object(out: Path) -> None:
    lines = (out / "retrieval/descriptions_shapes-2_compositional.jsonlines").read_text().splitlines()
    for line, (index, scene) in zip(lines, enumerate(SCENES), strict=True):
        described = json.loads(line)
        assert described["image_file"] == f"{SUBSET.image_id(index)}.jpg"
        first, *sentences = described["description"].removesuffix(".").split(". ")
        number, background = re.fullmatch(r"The picture shows (\w+) objects? on a (\w+) background", first).groups()  # type: ignore[union-attr]
        assert ["one", "two", "three", "four", "five"].index(number) + 1 == len(scene.objects)
        assert background == scene.background
        placed = [sentence for sentence in sentences if sentence.startswith("There is a")]
        nouns = Counter(sentence.removeprefix("There is ") for sentence in placed)
        words = [
            (o.size, o.texture if o.texture != "plain" else "", o.color, o.shape, "in the", o.cell)
            for o in scene.objects
        ]
        assert nouns == Counter(" ".join(["a", *filter(None, of)]) for of in words)
        for sentence in sentences[len(placed) :]:
            assert statement(scene, sentence.replace("The ", "the ").replace(" is ", " "))
    assert max(len(line.split()) for line in lines) > 64


def test_choices_name_images_of_the_pipeline_and_begin_with_the_right_caption(out: Path) -> None:
    items = read(out, "choices/choices_shapes-2_compositional.json")
    scenes = {SUBSET.image_id(i): scene for i, scene in enumerate(SCENES)}
    assert {item["image_id"] for item in items} == set(scenes)
    for item in items:
        assert set(item) == {"image_id", "captions", "kind"}
        right, *wrong = (statement(scenes[item["image_id"]], text) for text in item["captions"])
        assert right
        assert not any(wrong)


def test_the_evaluator_reads_the_choices(out: Path) -> None:
    path = out / "choices/choices_shapes-2_compositional.json"
    items = BENCHMARKS.get("captions").read([path])
    assert [(item.texts, item.part) for item in items] == [
        (tuple(record["captions"]), record["kind"]) for record in json.loads(path.read_text())
    ]


def test_no_scene_has_choices_is_still_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dialog_gen.shapes.second.choices.choices", lambda scene, rng: [])
    write_files(tmp_path, ShapesSubset(split="val", seed=5, limit=1, shard_size=16, world=SECOND))
    assert read(tmp_path, "choices/choices_shapes-2_val.json") == []


def test_the_truth_of_dialogues_is_measured_in_the_world_of_the_records(out: Path, tmp_path: Path) -> None:
    scenes = load_scenes(out)
    assert scenes == {SUBSET.image_id(i): scene for i, scene in enumerate(SCENES)}
    questions = [{"user": "How many objects are there?", "assistant": "5"}, {"user": "Who drew it?", "assistant": "I"}]
    with open_writer(str(tmp_path), {}) as store:
        rows = [make_row(0, texts=questions), make_row(1, texts=questions)]
        write_shard(store, shard_of("s", len(rows)), rows)
    five = next(s for s in SCENES if len(s.objects) == 5)
    two = next(s for s in SCENES if len(s.objects) == 2)
    ids = [row["image_id"] for row in rows]
    measured = measure_truth(DatasetFolder(str(tmp_path)), dict(zip(ids, (five, two), strict=True)))
    assert measured.asked == {"count": 2, "other": 2}
    assert measured.true["count"] == 1
    assert measured.true["other"] == 0


# --- the manifest


def test_the_manifest() -> None:
    manifest = load_manifest("shapes-2")
    assert manifest.splits == ("train", "val", "test", "compositional")
    assert load_manifest("shapes").splits == ("train", "val", "test")
    with pytest.raises(ValueError, match=r"world.*'shapes' or 'shapes-2'"):
        Manifest.model_validate(
            {"name": "x", "description": "x", "licence": "x", "source": {"kind": "embedded", "world": "shapes-3"}}
        )


@pytest.mark.slow
def test_download(tmp_path: Path, out: Path) -> None:
    manifest = load_manifest("shapes-2")
    request = DownloadRequest(manifest=manifest, split="compositional", out=tmp_path / "out", limit=20, seed=5)
    manifest.source.download(request)
    assert json.loads((tmp_path / "out/download.json").read_text())["manifest"] == "shapes-2"
    assert [Scene.from_json(json.loads(line)["scene"]) for line in (tmp_path / "out/truth.jsonl").open()] == SCENES[:20]
    assert (tmp_path / "out/images/00000.tar").exists()
    for options in manifest.uses(tmp_path / "out", "compositional").values():
        for word in options.split():
            assert word.startswith("--") or Path(word).exists(), word
    # Not the same world in the same folder.
    with pytest.raises(UsageError, match=r"begun with .*manifest = shapes-2"):
        load_manifest("shapes").source.download(
            DownloadRequest(manifest=load_manifest("shapes"), split="test", out=tmp_path / "out", limit=20, seed=5)
        )


# --- the first world


def test_the_first_world_stays_byte_for_byte(tmp_path: Path) -> None:
    """The digest was taken before there was a second world; files that later versions add do not count."""
    subset = ShapesSubset(split="val", seed=5, limit=60, shard_size=16)
    write_files(tmp_path, subset)
    digest = hashlib.sha256()
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and path.relative_to(tmp_path).parts[0] != "choices" and "descriptions" not in path.name:
            digest.update(str(path.relative_to(tmp_path)).encode() + path.read_bytes())
    for index in range(60):
        digest.update(subset.caption(index).encode())
    assert digest.hexdigest() == "b2497e0e4982812ec55d3e0112c27320d906a5b377c5460332e5ddbeed599106"
    digest = hashlib.sha256()
    for index in range(60):
        digest.update(subset.world.render(subset.scene(index)).tobytes())
    assert digest.hexdigest() == "33a9e240fbd50ed997c2cf7c399b7b23b02a02e58634fbd5d6a846288537e649"
