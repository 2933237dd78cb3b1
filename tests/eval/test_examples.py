"""Wins and losses in results, against what the models answer; and what results say of trainings."""

import base64
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluation import ReferenceModel, captions, vqa_files
from helpers.training import scene_row, write_dialogues
from PIL import Image

from dialog_eval import evaluate, write_table
from dialog_eval.results import Entry, Examples, Results
from dialog_eval.trained import label_of, training_of


def measured(split: Path, clips: tuple[Path, Path], task: str, **options: Any) -> Results:
    return evaluate(task, checkpoint=clips[1], baseline=clips[0], images=split / "images", device="cpu", **options)


def vqa(split: Path, clips: tuple[Path, Path], **options: Any) -> Results:
    questions, annotations = vqa_files(split)
    return measured(
        split, clips, "vqa", questions=questions, annotations=annotations, image_list=captions(split), **options
    )


def compared(results: Results) -> tuple[Entry, Entry, Examples]:
    base, own = (next(entry for entry in results.entries if entry.label == label) for label in ("base", "tuned"))
    assert base.examples is None
    assert own.examples is not None
    return base, own, own.examples


def test_vqa(split: Path, clips: tuple[Path, Path]) -> None:
    results = vqa(split, clips, examples=50)
    base, own, examples = compared(results)
    pairs = list(zip(own.metrics[0].values, base.metrics[0].values, strict=True))
    assert (examples.win_count, examples.loss_count) == (sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
    assert (len(examples.wins), len(examples.losses)) == (min(50, examples.win_count), min(50, examples.loss_count))
    asked = {(q["question"]) for q in json.loads(Path(vqa_files(split)[0]).read_text())["questions"]}
    for one in (*examples.wins, *examples.losses):
        assert one.item.text in asked
        assert one.answer.text != one.baseline_answer.text
        assert one.item.thumbnail is not None
        with Image.open(io.BytesIO(base64.b64decode(one.item.thumbnail))) as shown:
            assert max(shown.size) <= 192
    # They are bounded, and left out if none are wanted.
    few = compared(vqa(split, clips, examples=1))[2]
    assert (few.wins, few.losses) == (examples.wins[:1], examples.losses[:1])
    assert all(entry.examples is None for entry in vqa(split, clips, examples=0).entries)


def test_retrieval_shows_what_each_model_finds(split: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    results = measured(split, clips, "retrieval", captions=captions(split), examples=50)
    _, _, examples = compared(results)
    files = sorted((split / "images").rglob("*.png"))
    models = {name: ReferenceModel(folder) for name, folder in zip(("base", "tuned"), clips, strict=True)}
    for one in (*examples.wins, *examples.losses):
        for name, shown in (("tuned", one.answer), ("base", one.baseline_answer)):
            scores = models[name].texts([str(one.item.text)]) @ models[name].images(files).T
            assert shown.image_id == files[int(scores.argmax())].relative_to(split / "images").as_posix()
    assert examples.wins
    assert all(one.answer.image_id == one.right.image_id != one.baseline_answer.image_id for one in examples.wins)
    assert all(one.baseline_answer.image_id == one.right.image_id != one.answer.image_id for one in examples.losses)
    results.save(tmp_path / "r.json")
    write_table([tmp_path / "r.json"], tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 2 * (min(6, len(examples.wins)) + min(6, len(examples.losses)))


def test_checkpoints_named_model(split: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    """The folder above names a checkpoint, and its training is recorded, without paths of the machine."""
    run = tmp_path / "runs" / "draft-3"
    shutil.copytree(clips[1], run / "model")
    recipe = {"model": "base", "seed": 3, "out": str(run), "data": {"dialogues": "/data/mine/dialogues", "work": "/w"},
              "optim": {"lr": 0.001}}  # fmt: skip
    report = {"steps": 7, "model": "base", "recipe": recipe, "training_set": {"rows": 12}}
    (run / "train.json").write_text(json.dumps(report))
    results = evaluate(
        "retrieval", checkpoint=run / "model", baseline=clips[0], images=split / "images", captions=captions(split),
        device="cpu",
    )  # fmt: skip
    assert [entry.label for entry in results.entries] == ["base", "draft-3"]
    assert results.settings["models"]["base"]["training"] is None
    assert results.settings["models"]["draft-3"]["training"] == {
        "steps": 7, "model": "base", "rows": 12, "seed": 3,
        "settings": {"data.dialogues": "dialogues", "optim.lr": 0.001},
    }  # fmt: skip


def test_test_images_that_were_trained_on_are_told(split: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    """They are known by their bytes, whatever their ids; the page and its details say how many, or that it is open."""
    files = sorted((split / "images").rglob("*.png"))
    rows = {"0": [scene_row(2), scene_row(3)]}
    for row, file in zip(rows["0"], files[:2], strict=True):
        row |= {"images": [{"bytes": file.read_bytes(), "path": "other.png"}]}
        row["image_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    dialogues = write_dialogues(tmp_path / "mine", {"0": [*rows["0"], scene_row(7)]})
    run = tmp_path / "draft"
    shutil.copytree(clips[1], run / "model")
    recipe = {"model": "base", "data": {"dialogues": str(dialogues)}}
    (run / "train.json").write_text(json.dumps({"steps": 7, "recipe": recipe, "training_set": {"rows": 3}}))

    def said() -> tuple[dict[str, int | None], str]:
        results = evaluate(
            "retrieval", checkpoint=run / "model", baseline=clips[0], images=split / "images",
            captions=captions(split), device="cpu", out=tmp_path / "r.json",
        )  # fmt: skip
        write_table([tmp_path / "r.json"], tmp_path / "t.md")
        assert results.settings["models"]["base"]["test_images"] is None
        return results.settings["models"]["draft"]["test_images"], (tmp_path / "t.md").read_text(encoding="utf-8")

    found, page = said()
    assert found == {"images": len(files), "trained_on": 2}
    told = f"2 of {len(files)} test images are among its training images."
    assert f"**draft was trained on test images**: {told} Measure on others." in page.splitlines()[4]
    assert page.count(told) == 2
    write_table([tmp_path / "r.json"], tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text(encoding="utf-8").count(told) == 2
    shutil.rmtree(dialogues)
    write_dialogues(dialogues, {"0": [scene_row(7)]})
    found, page = said()
    assert found == {"images": len(files), "trained_on": 0}
    assert f"None of {len(files)} test images is among its training images." in page
    assert "was trained on test images" not in page
    shutil.rmtree(dialogues)
    found, page = said()
    assert found == {"images": len(files), "trained_on": None}
    assert "Whether test images are among its training images is not known" in page


@pytest.mark.parametrize("content", ["", "[]", '{"recipe": 3}', "\x00"])
def test_a_damaged_report_is_no_training(tmp_path: Path, content: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "train.json").write_text(content)
    assert training_of(str(tmp_path / "model")) is None
    assert training_of(None) is None
    assert label_of("ViT-B-32", "ViT-B-32") == "ViT-B-32"
    assert label_of(str(tmp_path / "model"), "model") == tmp_path.name
