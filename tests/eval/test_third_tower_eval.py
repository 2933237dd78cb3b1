"""To `dialog-eval` a third tower is a blend of its base with a model that has it for a text tower."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import ReferenceModel, captions, vqa_files
from helpers.loops import make_recipe
from torch.nn.functional import normalize

from dialog_eval.models import Models
from dialog_eval.results import Entry, Results, load_results
from dialog_gen.clip.base import SEARCH
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.clip.third_tower.checkpoint import ThirdTowerClip, save_third_tower
from dialog_gen.core.errors import UsageError
from dialog_train.systems.third_tower.training import ThirdTower

Measure = Callable[..., Results]

TEXTS = ["a red circle", "", "is there a large blue square " * 5, "no"]


@pytest.fixture(scope="module")
def checkpoint(clips: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The baseline, beside it the text tower of the other checkpoint; beta is 0.75."""
    out = tmp_path_factory.mktemp("third") / "c3m"
    base, tuned = (load_clip(str(folder)) for folder in clips)
    weights = {f"third.{name}": value for name, value in TextTower(tuned.model).named_parameters()}
    ThirdTower(base, make_recipe(out, "third-tower", beta=0.75)).save(out, weights)
    return out


@pytest.mark.parametrize("beta", [0.75, 0.0, 1.0])
def test_text_vectors(clips: tuple[Path, Path], checkpoint: Path, beta: float) -> None:
    third = load_clip(str(checkpoint), needs=SEARCH)
    assert isinstance(third, ThirdTowerClip)
    models = Models(third.with_beta(beta), "c3m", load_clip(str(clips[0])), "base", batch_size=3)
    first, second = (ReferenceModel(folder).texts(TEXTS) for folder in clips)
    label = f"c3m, embedding blend {beta:g}" if beta else "c3m"
    assert [(v.label, v.beta) for v in models.variants] == [("base", None), (label, beta or None)]
    encoded = models.encode_texts(TEXTS)
    assert len(encoded) == (1 if beta == 1 else 2), "the text towers of the base are one"
    wanted = [first, normalize(beta * first + (1 - beta) * second, dim=-1)]
    for variant, vectors in zip(models.variants, wanted, strict=True):
        found = models.text_vectors(variant, encoded)
        torch.testing.assert_close(found.double(), vectors, rtol=0, atol=1e-5)
    assert len(models.image_towers) == 1


def test_blends_with_a_model_of_two_text_towers(clips: tuple[Path, Path], checkpoint: Path) -> None:
    third, tuned = load_clip(str(checkpoint), needs=SEARCH), load_clip(str(clips[1]))
    models = Models(tuned, "t", third, "c3m", [("embedding", 0.5)])
    first, second = (ReferenceModel(folder).texts(TEXTS) for folder in clips)
    found = models.text_vectors(models.variants[2], models.encode_texts(TEXTS))
    wanted = normalize(0.5 * (0.75 * first + 0.25 * second) + 0.5 * second, dim=-1)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="use --blend embedding"):
        Models(tuned, "t", third, "c3m", [("weight", 0.5)])


def task_arguments(task: str, split: Path) -> list[object]:
    questions, answers = vqa_files(split)
    vqa = ["--questions", questions, "--annotations", answers, "--image-list", captions(split)]
    of_captions = ["--captions", captions(split)]
    return {"retrieval": of_captions, "vqa": vqa, "sweep": [*of_captions, *vqa], "choice": []}[task]


@pytest.fixture
def measure(dialog_eval: Cli, split: Path, tmp_path: Path) -> Measure:
    def call(task: str, *arguments: object) -> Results:
        out = tmp_path / "results.json"
        ended = dialog_eval(
            task,
            *task_arguments(task, split),
            "--images",
            split / "images",
            "--device",
            "cpu",
            "--out",
            out,
            *arguments,
        )
        assert ended.code == 0, ended.err
        return load_results(out)

    return call


def figures(results: Results) -> list[tuple[object, ...]]:
    """All that is measured, without names."""

    def of(entry: Entry) -> tuple[object, ...]:
        return entry.task, entry.blend, entry.beta, [(metric.name, metric.values) for metric in entry.metrics]

    return [of(entry) for entry in results.entries]


def test_sweep(measure: Measure, clips: tuple[Path, Path], checkpoint: Path) -> None:
    found = measure("sweep", "--checkpoint", checkpoint, "--betas", "0.9,0.3")
    same = measure("sweep", "--checkpoint", clips[1], "--baseline", clips[0], "--betas", "0.9,0.3")
    assert figures(found) == figures(same)
    assert found.baseline == "base"
    assert list(found.settings["models"]) == ["base", "c3m"]
    labels = ["base", "c3m", *(f"c3m, {kind} blend {beta}" for kind in ("embedding", "weight") for beta in (0.9, 0.3))]
    assert [entry.label for entry in found.entries if entry.task == "retrieval"] == labels
    given = measure("sweep", "--checkpoint", checkpoint, "--baseline", clips[0], "--betas", "0.9,0.3")
    assert figures(given) == figures(same)


def bare(entry: Entry) -> Entry:
    """Without what only a sweep can tell: it has a baseline to find wins and losses, and no blind runs of blends."""
    return entry.model_copy(update={"notes": [], "examples": None})


@pytest.mark.parametrize("task", ["retrieval", "vqa"])
def test_one_beta(measure: Measure, checkpoint: Path, task: str) -> None:
    swept = measure("sweep", "--checkpoint", checkpoint, "--betas", "0.75,0.3", "--blend", "embedding")
    known = {entry.label: entry for entry in swept.entries if entry.task == task}
    hashes = set[str]()
    for arguments, label in (([], "c3m, embedding blend 0.75"), (["--beta", 0.3], "c3m, embedding blend 0.3")):
        measured = measure(task, "--checkpoint", checkpoint, *arguments).entries
        (entry, *blind) = [of_task for of_task in measured if of_task.task == task]
        assert bare(entry) == bare(known[label])
        assert [(b.label, b.blend) for b in blind] == ([(f"{label}, blind", None)] if task == "vqa" else [])
        hashes.add(entry.weights_sha256)
    (entry, *_) = measure(task, "--checkpoint", checkpoint, "--beta", 0).entries
    assert bare(entry) == bare(known["c3m"])
    # One model, whatever its beta, and another than its base.
    assert hashes == {entry.weights_sha256}
    assert known["base"].weights_sha256 not in hashes


def test_a_tower_for_questions_only(measure: Measure, clips: tuple[Path, Path], checkpoint: Path) -> None:
    switched = checkpoint.with_name("switched")
    third = load_clip(str(checkpoint), needs=SEARCH)
    assert isinstance(third, ThirdTowerClip)
    save_third_tower(replace(third, base_share=1.0, question_share=0.0), switched, {})
    for task, like in (("retrieval", clips[0]), ("vqa", clips[1])):
        assert figures(measure(task, "--checkpoint", switched)) == figures(measure(task, "--checkpoint", like))
    compared = measure("vqa", "--checkpoint", switched, "--baseline", clips[0])
    assert [entry.label for entry in compared.entries if entry.task == "vqa"][::2] == ["base", "switched"]
    swept = measure("sweep", "--checkpoint", switched, "--baseline", clips[0], "--betas", "0.9", "--blend", "embedding")
    same = measure("sweep", "--checkpoint", clips[1], "--baseline", clips[0], "--betas", "0.9", "--blend", "embedding")
    assert [one for one in figures(swept) if one[0] == "vqa"] == [one for one in figures(same) if one[0] == "vqa"]
    of_base, *others = [one[-1] for one in figures(swept) if one[0] == "retrieval"]
    assert others == [of_base, of_base]
    halved = measure("retrieval", "--checkpoint", switched, "--beta", 0.5)
    assert figures(halved) == figures(measure("retrieval", "--checkpoint", checkpoint, "--beta", 0.5))


def test_choices_read_as_answers(measure: Measure, clips: tuple[Path, Path], checkpoint: Path, split: Path) -> None:
    switched = checkpoint.with_name("switched-too")
    third = load_clip(str(checkpoint), needs=SEARCH)
    assert isinstance(third, ThirdTowerClip)
    save_third_tower(replace(third, base_share=1.0, question_share=0.0), switched, {})
    told = json.loads(Path(captions(split)).read_text())
    names = {image["id"]: image["file_name"] for image in told["images"]}
    texts = {one["image_id"]: one["caption"] for one in told["annotations"]}
    items = [{"image_id": names[i], "captions": [texts[i], texts[j]]} for i in texts for j in texts if i != j]
    choices = checkpoint.with_name("choices.json")
    choices.write_text(json.dumps(items))

    def choose(model: Path, *more: str) -> Results:
        return measure("choice", "--checkpoint", model, "--benchmark", "captions", "--files", choices, *more)

    assert figures(choose(switched)) == figures(choose(clips[0]))
    answers = choose(switched, "--as-answers")
    assert figures(answers) == figures(choose(clips[1], "--as-answers")) != figures(choose(switched))
    assert {one.protocol for one in answers.entries} == {"choice of captions, read as answers"}


def test_as_a_baseline(measure: Measure, clips: tuple[Path, Path], checkpoint: Path) -> None:
    results = measure("retrieval", "--checkpoint", clips[1], "--baseline", checkpoint, "--baseline-label", "old")
    assert [entry.label for entry in results.entries] == ["old, embedding blend 0.75", "tuned"]
    assert results.baseline == "old, embedding blend 0.75"


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        ("retrieval", ["--checkpoint", "TUNED", "--beta", "0.5"], "--beta is for checkpoints with a third tower"),
        ("sweep", ["--checkpoint", "C3M", "--beta", "0.5"], "leave out --beta"),
        ("sweep", ["--checkpoint", "TUNED"], "give --baseline"),
    ],
)
def test_wrong_use(
    dialog_eval: Cli,
    split: Path,
    clips: tuple[Path, Path],
    checkpoint: Path,
    tmp_path: Path,
    task: str,
    arguments: list[str],
    said: str,
) -> None:
    folders = {"TUNED": str(clips[1]), "C3M": str(checkpoint)}
    given = [folders.get(argument, argument) for argument in arguments]
    files = ["--captions", captions(split), "--images", split / "images", "--out", tmp_path / "x.json"]
    assert said in dialog_eval(task, *files, *given).mistake
