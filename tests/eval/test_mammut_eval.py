"""`dialog-eval` on a MaMMUT: as a CLIP against its own vectors, and as a writer against one text at a time."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import SUBSET, ReferenceModel, annotations, captions, image_path, vqa_files
from helpers.mammut import write_mammut
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForImageTextToText, AutoProcessor

from dialog_eval.data.image_index import ImageIndex
from dialog_eval.data.images import embed_images
from dialog_eval.models import Models
from dialog_eval.results import Metric, load_results
from dialog_eval.tasks.generation import GenerationOptions, load_generation
from dialog_eval.writers import open_writer
from dialog_gen.clip.mammut.model import register_mammut

BEAMS, NEW = 2, 4


@pytest.fixture(scope="module")
def mammuts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("mammuts")
    return write_mammut(root / "one"), write_mammut(root / "other", seed=1)


@torch.no_grad()
def written_alone(folder: Path, split: Path, asked: list[tuple[int, str]], task: str, *, blind: bool) -> list[str]:
    """One image and one prompt at a time, through transformers; `asked`: number of the image and question."""
    register_mammut()
    model: Any = AutoModelForImageTextToText.from_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    images = [Image.open(image_path(split, SUBSET, index)).convert("RGB") for index in range(SUBSET.limit)]
    pixels = [processor(images=[image], text=["<image>"])["pixel_values"] for image in images]
    read: list[Tensor] = [model.mammut.read(each) for each in pixels]
    mean = torch.cat(read).mean(0, keepdim=True)
    texts: list[str] = []
    for number, question in asked:
        ids = processor(images=[images[number]], text=[f"<image>{question}"])["input_ids"]
        if task == "captioning":
            assert ids.shape == (1, 1)
            ids = torch.cat([ids, torch.tensor([[49406]])], 1)
        image = mean if blind else read[number]
        rows = model.generate(input_ids=ids, image=image, num_beams=BEAMS, do_sample=False, max_new_tokens=NEW)
        texts.append(processor.tokenizer.decode(rows[0, ids.shape[1] :].tolist()))
    return texts


@pytest.mark.parametrize("name", ["vqa", "captioning"])
def test_writes_what_each_text_alone_would_be(split: Path, mammuts: tuple[Path, Path], name: str) -> None:
    models = Models(open_writer(str(mammuts[0])), "one", batch_size=5)
    questions, answers = vqa_files(split, "OpenEnded")
    options = GenerationOptions(
        tasks=name,
        beams=BEAMS,
        max_tokens=NEW,
        questions=Path(questions),
        annotations=Path(answers),
        captions=Path(captions(split)),
        image_list=Path(captions(split)),
    )
    index = ImageIndex(str(split / "images"))
    (loaded,) = load_generation(options, index)
    written: list[list[str]] = []

    def keep(texts: list[str]) -> list[Metric]:
        written.append(texts)
        return [Metric.of("x", [0.0] * len(texts))]

    task: Any = replace(loaded, judge=keep)  # type: ignore[type-var]
    images = embed_images(models, index, set(task.image_ids))
    done: list[tuple[int, int | None]] = []
    entries, _ = task.evaluate(models, images, lambda _, count, total, *more: done.append((count, total)))
    # There are captions, but it reads images alone.
    assert [e.label for e in entries] == ["one", "one, blind"]
    assert {e.noise for e in entries} == {None}
    assert done[-1] == (2 * len(task.asked), 2 * len(task.asked))

    asked = [(index, "") for index in range(SUBSET.limit)]
    if name == "vqa":
        asked = [(q["image_id"], q["question"]) for q in json.loads(Path(questions).read_text())["questions"]]
    for texts, blind in zip(written, (False, True), strict=True):
        assert texts == written_alone(mammuts[0], split, asked, name, blind=blind)
    assert len(set(written[0])) > 3, "a test that can tell"
    assert written[0] != written[1]


def test_as_a_writer_from_the_command_line(
    dialog_eval: Cli, split: Path, mammuts: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    questions, answers = vqa_files(split, "OpenEnded")
    base = ["--checkpoint", mammuts[0], "--images", split / "images", "--out", out, "--device", "cpu"]
    base += ["--captions", captions(split), "--questions", questions, "--annotations", answers]
    base += ["--image-list", captions(split), "--beams", BEAMS]
    ended = dialog_eval("generate", *base, "--baseline", mammuts[1], "--tasks", "vqa,captioning", "--max-tokens", NEW)
    assert (ended.code, ended.err) == (0, "")
    results = load_results(out)
    labels = ["other", "other, blind", "one", "one, blind"]
    assert [(e.task, e.label) for e in results.entries] == [
        (t, label) for t in ("vqa", "captioning") for label in labels
    ]
    assert len({e.weights_sha256 for e in results.entries}) == 2

    out.unlink()
    error = dialog_eval("generate", *base, "--tasks", "entailment").mistake
    assert "one does no entailment: leave it out of --tasks" in error
    # Questions that leave no room for an answer.
    file = tmp_path / "long.json"
    content = json.loads(Path(questions).read_text())
    content["questions"][3]["question"] = "star " * 23
    file.write_text(json.dumps(content))
    long = [file if part == questions else part for part in base]
    assert "fills the model's 24 tokens" in dialog_eval("generate", *long, "--tasks", "vqa").mistake
    assert not out.exists()


def test_as_a_clip_from_the_command_line(
    dialog_eval: Cli, split: Path, mammuts: tuple[Path, Path], tmp_path: Path
) -> None:
    base = ["--checkpoint", mammuts[0], "--images", split / "images", "--device", "cpu"]

    def metrics(command: str, *arguments: object) -> dict[str, float]:
        out = tmp_path / f"{command}.json"
        ended = dialog_eval(command, *base, "--out", out, *arguments)
        assert (ended.code, ended.err) == (0, "")
        entry = load_results(out).entries[0]
        assert entry.label == "one"
        return {metric.name: metric.mean for metric in entry.metrics}

    reference = ReferenceModel(mammuts[0])
    images = reference.images([image_path(split, SUBSET, index) for index in range(SUBSET.limit)])
    described = json.loads(Path(captions(split)).read_text())["annotations"]
    scores = reference.texts([a["caption"] for a in described]) @ images.T
    right = torch.tensor([a["image_id"] for a in described])
    found = metrics("retrieval", "--captions", captions(split))
    assert found["image R@1"] == pytest.approx((scores.argmax(1) == right).double().mean().item())
    assert found["text R@1"] == pytest.approx((right[scores.argmax(0)] == torch.arange(12)).double().mean().item())

    found = metrics(
        "vqa", "--questions", vqa_files(split)[0], "--annotations", annotations(split), "--image-list", captions(split)
    )
    assert 0 <= found["accuracy"] <= 1
    folder = split / "classification"
    labels = json.loads((folder / "labels_shapes_test.json").read_text())
    classes = dict(line.split("\t") for line in (folder / "classes.txt").read_text().splitlines())
    templates = (folder / "templates.txt").read_text().splitlines()
    given = ["--labels", folder / "labels_shapes_test.json", "--classes", folder / "classes.txt"]
    found = metrics("classify", *given, "--templates", folder / "templates.txt")
    prompts = torch.stack([reference.texts([t.format(c) for t in templates]).mean(0) for c in classes.values()])
    best = (images @ normalize(prompts, dim=-1).T).argmax(1).tolist()
    hits = [list(classes)[best[i]] == labels[SUBSET.image_id(i)] for i in range(12) if SUBSET.image_id(i) in labels]
    assert found["top-1"] == pytest.approx(sum(hits) / len(hits))
