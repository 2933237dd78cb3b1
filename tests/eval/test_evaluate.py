"""`dialog_eval.evaluate` against the command line, which is tested against references of its own."""

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
from helpers.cli import Cli
from helpers.evaluation import captions, vqa_files

import dialog_eval
from dialog_eval.options import Common
from dialog_eval.results import load_results
from dialog_eval.tasks.base import TASKS
from dialog_eval.tasks.vqa import DialogueFormat
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_train.data.training_set import DIALOGUE_FORMATS


@pytest.fixture
def models(split: Path, clips: tuple[Path, Path]) -> dict[str, Any]:
    return {"checkpoint": clips[1], "baseline": clips[0], "images": split / "images", "device": "cpu"}


def arguments_of(options: dict[str, Any]) -> list[object]:
    return [part for name, value in options.items() for part in ("--" + name.replace("_", "-"), value)]


def test_gives_and_writes_what_the_command_does(
    dialog_eval: Cli,
    models: dict[str, Any],
    split: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from dialog_eval.api import evaluate

    own: dict[str, Any] = {"captions": captions(split), "captions_per_image": 2, "label": "other"}
    told = list[tuple[str, int, int | None]]()

    def on_progress(stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        told.append((stage, done, total))

    out = tmp_path / "new" / "api.json"
    found = evaluate("retrieval", **models, **own, out=out, on_progress=on_progress)
    assert capfd.readouterr() == ("", "")
    assert load_results(out) == found
    assert dialog_eval("retrieval", *arguments_of(models | own), "--out", tmp_path / "cli.json").code == 0
    assert load_results(tmp_path / "cli.json") == found
    assert [entry.label for entry in found.entries] == ["base", "other"]
    assert {stage: (done, total) for stage, done, total in told} == {"images": (12, 12), "captions": (24, 24)}


def test_several_tasks_and_blends_are_a_sweep(
    dialog_eval: Cli,
    models: dict[str, Any],
    split: Path,
    tmp_path: Path,
) -> None:
    from dialog_eval.api import evaluate

    own = {"captions": captions(split), "image_list": captions(split), "calibrate": "text"}
    own |= dict(zip(("questions", "annotations"), vqa_files(split), strict=True))
    found = evaluate(["retrieval", "vqa"], **models, **own, blends=[("embedding", 0.5), ("weight", 0.5)])
    ended = dialog_eval("sweep", *arguments_of(models | own), "--betas", "1,0.5", "--out", tmp_path / "cli.json")
    assert (ended.code, ended.err) == (0, "")
    assert load_results(tmp_path / "cli.json").entries == found.entries
    assert {(entry.task, entry.blend) for entry in found.entries} == {
        (task, blend) for task in ("retrieval", "vqa") for blend in (None, "embedding", "weight")
    } | {("vqa-types", None)}


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        (
            "retrival",
            {},
            "unknown evaluation task 'retrival'; did you mean 'retrieval'.* Known: choice, classify, diagn",
        ),
        ([], {}, "nothing to measure"),
        ("retrieval", {"captions": "x", "splitt": "val"}, "retrieval has no option 'splitt'; did you mean 'split'"),
        ("retrieval", {"captions": "x", "questions": "x"}, "retrieval has no option 'questions'; .*captions_per_image"),
        ("retrieval", {}, "retrieval needs the option 'captions'"),
        ("retrieval", {"captions": 3}, "retrieval: option 'captions': .*got 3"),
        ("retrieval", {"captions": "x", "captions_per_image": 0}, "from 1 on, or all"),
        ("vqa", {"questions": "x", "annotations": "x", "candidates": "mc19"}, "option 'candidates': .*'mc18'"),
        ("generate", {"beams": 0}, "generate: option 'beams' must be at least 1, got 0"),
        ("generate", {"tasks": "reading"}, "unknown task 'reading'"),
        ("classify", {"batch_size": 0}, "option 'batch_size' must be at least 1"),
        ("classify", {"beta": 1.5}, "option 'beta' must be at most 1"),
        ("classify", {"beta": 0.5, "blends": [("weight", 0.5)]}, "leave out --beta"),
    ],
)
def test_wrong_use(models: dict[str, Any], task: str, given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        dialog_eval.evaluate(task, **models, **given, out=tmp_path / "x.json")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "x.json").exists()


def test_every_option_of_all_evaluations_is_a_parameter() -> None:
    parameters = inspect.signature(dialog_eval.evaluate).parameters
    for field in fields(Common):
        default = inspect.signature(Common).parameters[field.name].default
        assert parameters[field.name].default == default


def test_formats_are_those_of_the_training() -> None:
    assert get_args(DialogueFormat) == tuple(DIALOGUE_FORMATS)


def test_tables(tmp_path: Path) -> None:
    with pytest.raises(DialogGenError, match="cannot be read"):
        dialog_eval.write_table([tmp_path / "none.json"], tmp_path / "t.md")


def test_names_for_others() -> None:
    from dialog_eval.retrieval import recall_at_k
    from dialog_eval.vqa import normalize_answer, vqa_accuracy

    assert normalize_answer("The Two") == "2"
    assert vqa_accuracy("2", ["two"] * 9 + ["three"]) == 1
    assert recall_at_k.__module__ == "dialog_eval.metrics.retrieval"
    with pytest.raises(AttributeError, match="nothing"):
        _ = dialog_eval.nothing
    assert {"classify", "retrieval", "vqa", "generate"} <= set(TASKS.names())


def test_the_import_is_light() -> None:
    script = """if True:
        import sys, dialog_eval
        before = sorted({"numpy", "pydantic", "typer"} & set(sys.modules))
        dialog_eval.evaluate, dialog_eval.write_table
        from dialog_eval.tasks.base import TASKS
        TASKS.all()
        print(before, sorted({"torch", "open_clip", "transformers", "matplotlib"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[] []\n", done.stderr
