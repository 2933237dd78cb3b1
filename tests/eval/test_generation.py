"""`dialog-eval generate` against decoders that are asked one text at a time, about open_clip's own vectors."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from helpers.cli import Cli
from helpers.close import TINY
from helpers.evaluation import SUBSET, ReferenceModel, annotations, captions, image_path, vqa_files
from helpers.results import entry, pixels, save
from torch.nn.functional import normalize

from dialog_eval.data.image_index import ImageIndex
from dialog_eval.data.images import embed_images
from dialog_eval.models import Models
from dialog_eval.results import Metric, load_results
from dialog_eval.tables.plots import noise_plot
from dialog_eval.tables.pooling import pool
from dialog_eval.tables.table import write_table
from dialog_eval.tasks.generation import GenerationOptions, GenerationTask, load_generation
from dialog_eval.writers import open_writer
from dialog_gen.clip.close.adapters import Adapter
from dialog_gen.clip.close.checkpoint import CloseWriter, load_close
from dialog_gen.clip.close.layout import PROMPTS
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import ignore_progress
from dialog_gen.shapes.language import ANSWERS
from dialog_train.systems.close.config import CloseRecipe
from dialog_train.systems.close.training import CloseTraining, new_decoder

WIDTH = 32
ALL = "vqa,captioning,entailment"


def write_decoder(
    folder: Path, clip: Path, seed: int, noise: float, tasks: Sequence[str] = tuple(ALL.split(","))
) -> Path:
    """A decoder with random weights that says words of the world."""
    content: dict[str, Any] = {"model": str(clip), "out": folder, "noise": noise, "decoder": TINY}
    content |= {"data": {"dialogues": "x", "work": "x"}, "optim": {"lr": 1, "batch_size": 2}, "tasks": tasks}
    recipe = CloseRecipe.model_validate(content)
    texts = [*ANSWERS, *PROMPTS.values(), "what color is the star where there how many objects background"]
    decoder = new_decoder(recipe.decoder, WIDTH, texts, seed)
    with torch.no_grad():
        # Far from linear, so that what it says depends on all that it is given.
        for parameter in decoder.parameters():
            parameter.mul_(3)
        decoder.projection.weight.mul_(30)
    CloseTraining(load_clip(str(clip)), decoder, Adapter(), recipe).save(folder, {})
    return folder


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory, clips: tuple[Path, Path]) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("decoders")
    return write_decoder(root / "noisy", clips[0], 0, 0.1), write_decoder(root / "plain", clips[0], 1, 0.0)


def load(split: Path, tasks: str) -> list[GenerationTask]:
    questions, answers = map(Path, vqa_files(split, "OpenEnded"))
    described = Path(captions(split))
    options = GenerationOptions(
        tasks=tasks,
        beams=2,
        max_tokens=3,
        questions=questions,
        annotations=answers,
        captions=described,
        image_list=described,
    )
    return load_generation(options, ImageIndex(str(split / "images")))


def test_writes_what_each_text_alone_would_be(
    split: Path, clips: tuple[Path, Path], decoders: tuple[Path, Path]
) -> None:
    models = Models(open_writer(str(decoders[0])), "noisy", batch_size=5)
    written: list[list[str]] = []

    def keep(texts: list[str]) -> list[Metric]:
        written.append(texts)
        return [Metric.of("x", [0.0])]

    (task,) = (replace(task, judge=keep, notes=lambda metrics: []) for task in load(split, "vqa"))
    images = embed_images(models, ImageIndex(str(split / "images")), set(task.image_ids))
    entries, _ = task.evaluate(models, images, ignore_progress)
    assert [e.label for e in entries] == ["noisy", "noisy, blind", "noisy, from captions"]
    assert {e.noise for e in entries} == {0.1}

    reference, close = ReferenceModel(clips[0]), load_close(decoders[0])
    seen = reference.images([image_path(split, SUBSET, index) for index in range(SUBSET.limit)])
    described = json.loads(Path(captions(split)).read_text())["annotations"]
    by_image = {i: [a["caption"] for a in described if a["image_id"] == i] for i in range(SUBSET.limit)}
    told = torch.stack([normalize(reference.texts(by_image[i]).mean(0), dim=-1) for i in range(SUBSET.limit)])
    blind = normalize(seen.mean(0), dim=-1).expand_as(seen)
    asked = json.loads(Path(vqa_files(split, "OpenEnded")[0]).read_text())["questions"]
    for vectors, texts in zip((seen, blind, told), written, strict=True):
        expected = [
            close.decoder.write(
                vectors[q["image_id"]][None].float(), [f"question: {q['question']}"], beams=2, max_tokens=3
            )[0]
            for q in asked
        ]
        assert texts == expected
    assert len(set(written[0])) > 3, "a test that can tell"


@pytest.mark.parametrize(("task", "length"), [("vqa", 16), ("captioning", 32), ("entailment", 8)])
def test_texts_are_as_long_as_published(
    split: Path, decoders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, task: str, length: int
) -> None:
    lengths = set[int]()

    def write(self: Any, images: torch.Tensor, prompts: list[Any], *, beams: int, max_tokens: int) -> list[str]:
        lengths.add(max_tokens)
        return ["yes"] * len(prompts)

    monkeypatch.setattr(CloseWriter, "write", write)
    models = Models(open_writer(str(decoders[0])), "noisy", batch_size=64)
    (one,) = (replace(one, options=replace(one.options, max_tokens=None)) for one in load(split, task))
    one.evaluate(models, embed_images(models, one.index, set(one.image_ids)), ignore_progress)
    assert lengths == {length}


def test_answers_are_judged_as_vqa_does(split: Path) -> None:
    (task,) = load(split, "vqa")
    items = json.loads(Path(annotations(split)).read_text())["annotations"]
    right = {metric.name: metric for metric in task.judge([item["multiple_choice_answer"] for item in items])}
    assert right["accuracy"].mean == 1
    assert right["accuracy"].groups == [item["image_id"] for item in items]
    assert task.judge(["nothing"] * len(items))[0].mean == 0
    yes = next(
        reference for reference in task.references if (reference.name, reference.metric) == ('always "yes"', "accuracy")
    )
    assert task.judge(["yes"] * len(items))[0].mean == pytest.approx(yes.value)
    assert yes.value > 0


def test_a_question_gives_a_true_and_a_false_statement(split: Path) -> None:
    (task,) = load(split, "entailment")
    items = json.loads(Path(annotations(split)).read_text())["annotations"]
    questions = json.loads(Path(vqa_files(split)[0]).read_text())["questions"]
    asked = {q["question_id"]: q["question"] for q in questions}
    statements, told = iter(task.asked), 0
    for item in items:
        same_type = {i["multiple_choice_answer"] for i in items if i["question_type"] == item["question_type"]}
        wrong = same_type - {given["answer"] for given in item["answers"]}
        if not wrong:
            continue
        right, other = next(statements), next(statements)
        assert right.question == other.question == asked[item["question_id"]]
        assert right.answer == item["multiple_choice_answer"]
        assert other.answer in wrong
        assert right.image_id == other.image_id
        told += 1
    assert next(statements, None) is None
    labels = ["yes", "no"] * told
    metrics = {metric.name: metric.mean for metric in task.judge(labels)}
    assert metrics == {"accuracy": 1, "accuracy, yes": 1, "accuracy, no": 1}
    metrics = {metric.name: metric.mean for metric in task.judge(["YES"] * len(labels))}
    assert metrics == {"accuracy": 0.5, "accuracy, yes": 1, "accuracy, no": 0}


def test_captions_are_judged_as_sacrebleu_does(split: Path) -> None:
    (task,) = load(split, "captioning")
    described = json.loads(Path(captions(split)).read_text())
    truth = {
        i["id"]: [a["caption"] for a in described["annotations"] if a["image_id"] == i["id"]]
        for i in described["images"]
    }
    texts = ["a red star"] * len(truth)
    metrics = {metric.name: metric.values for metric in task.judge(texts)}
    for name, score in (("BLEU", sacrebleu.sentence_bleu), ("chrF", sacrebleu.sentence_chrf)):
        expected = [score("a red star", some).score / 100 for some in truth.values()]
        assert metrics[name] == pytest.approx(expected)
    assert [m.mean for m in task.judge([some[2].upper() for some in truth.values()])] == pytest.approx([1, 1, 1])


def test_only_what_it_was_trained_for(dialog_eval: Cli, split: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    decoder = write_decoder(tmp_path / "answers", clips[0], 0, 0.1, ["vqa"])
    arguments = ["--checkpoint", decoder, "--images", split / "images", "--out", tmp_path / "results.json"]
    arguments += ["--tasks", "captioning", "--captions", captions(split), "--device", "cpu"]
    assert "answers does no captioning: leave it out of --tasks" in dialog_eval("generate", *arguments).mistake


def test_from_the_command_line_to_a_table_and_a_plot(
    dialog_eval: Cli, split: Path, decoders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    files = dict(zip(("--questions", "--annotations"), vqa_files(split, "OpenEnded"), strict=True))
    arguments = ["--checkpoint", decoders[0], "--baseline", decoders[1], "--images", split / "images", "--out", out]
    arguments += [part for item in files.items() for part in item]
    arguments += ["--captions", captions(split), "--image-list", captions(split)]
    arguments += ["--tasks", ALL, "--beams", 2, "--max-tokens", 3, "--device", "cpu"]
    ended = dialog_eval("generate", *arguments)
    assert (ended.code, ended.err) == (0, "")
    results = load_results(out)
    assert results.baseline == "plain"
    labels = [f"{name}{suffix}" for name in ("plain", "noisy") for suffix in ("", ", blind", ", from captions")]
    assert [e.label for e in results.entries] == 3 * labels
    assert [e.task for e in results.entries] == [task for task in ALL.split(",") for _ in labels]
    assert {(e.label.split(",")[0], e.noise) for e in results.entries} == {("plain", 0.0), ("noisy", 0.1)}
    assert len({e.weights_sha256 for e in results.entries}) == 2
    write_table([out], tmp_path / "table.md", tmp_path / "plot.png")
    assert "Captioning" in (tmp_path / "table.md").read_text()
    assert pixels((tmp_path / "plot.png").read_bytes()).std() > 0


def test_without_captions(dialog_eval: Cli, split: Path, decoders: tuple[Path, Path], tmp_path: Path) -> None:
    questions, answers = vqa_files(split, "OpenEnded")
    arguments = ["--checkpoint", decoders[0], "--images", split / "images", "--out", tmp_path / "x.json", "--beams", 1]
    files = ["--questions", questions, "--annotations", answers, "--image-list", captions(split)]
    assert dialog_eval("generate", *arguments, *files).code == 0
    assert [e.label for e in load_results(tmp_path / "x.json").entries] == ["noisy", "noisy, blind"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "vqa"], "vqa needs both --questions and --annotations"),
        (["--tasks", "captioning"], "captioning needs --captions"),
        (["--tasks", "vqa,reading"], "unknown task 'reading'"),
        (
            ["--pretrained", "openai", "--tasks", "captioning", "--captions", "CAPTIONS"],
            "leave out --pretrained openai",
        ),
        (["--checkpoint", "CLIP", "--tasks", "captioning", "--captions", "CAPTIONS"], "writes no text"),
    ],
)
def test_wrong_use(
    dialog_eval: Cli,
    split: Path,
    clips: tuple[Path, Path],
    decoders: tuple[Path, Path],
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    given = {"CAPTIONS": captions(split), "CLIP": clips[0]}
    base = ["--checkpoint", decoders[0], "--images", split / "images", "--out", tmp_path / "x.json"]
    assert said in dialog_eval("generate", *base, *(given.get(part, part) for part in arguments)).error


def test_a_plot_of_noise(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        entry(f"w {noise}{suffix}", [float(n < 20 + 100 * noise) for n in range(40)], noise=noise)
        for noise in (0.0, 0.1)
        for suffix in ("", ", blind", ", from captions")
    ]
    sections = pool(save(tmp_path, rows, baseline=None))
    assert [row.noise for row in sections[0].rows] == [0.0] * 3 + [0.1] * 3
    from dialog_eval.tables import plots as module

    lines = module._noise_lines(sections[0], "accuracy")
    assert {kind: {x: e.mean for x, e in points.items()} for kind, points in lines.items()} == {
        kind: {0.0: 0.5, 0.1: 0.75} for kind in ("", "blind", "from captions")
    }
    assert pixels(noise_plot(sections)).shape[2] == 3
    mixed = save(tmp_path, [rows[0], rows[0].model_copy(update={"noise": 0.3})], baseline=None)
    with pytest.raises(UsageError, match="trainings with different noise"):
        pool(mixed)
