"""A task from outside the package, in one file, through an entry point; and a package that cannot be imported."""

import os
import subprocess
from pathlib import Path

import pytest
from helpers.evaluation import SUBSET, ReferenceModel, captions, image_path
from helpers.forks import run_module

from dialog_eval import write_table
from dialog_eval.results import load_results

TASK = """
from dataclasses import dataclass
from typing import Annotated

import typer

from dialog_eval.results import Metric
from dialog_eval.tasks.base import TASKS, Presentation, TaskDefinition
from dialog_gen.core.progress import counter


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceOptions:
    word: Annotated[str, typer.Option(help="The word that images should be nearer to.")]
    other_word: Annotated[str, typer.Option(help="Than to this.")] = "nothing"


@dataclass(frozen=True)
class PreferenceTask:
    words: tuple[str, str]
    image_ids: list[str]

    def evaluate(self, models, images, on_progress):
        encoded = models.encode_texts(self.words, counter(on_progress, "words", 2, "words"))
        entries = []
        for variant in models.variants:
            scores = images.of(variant, self.image_ids) @ models.text_vectors(variant, encoded).T
            nearer = (scores[:, 0] > scores[:, 1]).float().tolist()
            entries.append(variant.entry("preference", "words", "plain", [Metric.of("nearer", nearer)]))
        return entries, []


@TASKS.register("preference")
class Preference(TaskDefinition):
    description = "Whether images are nearer to one word than to another."
    options_type = PreferenceOptions
    presentations = (Presentation(task="preference", title="Preference of words"),)

    def load(self, index):
        return [PreferenceTask((self.options.word, self.options.other_word), index.image_ids)]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two installed packages: one with a task, one that needs a module that does not exist."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "words_of_a_test.py").write_text(TASK)
    (folder / "broken_of_a_test.py").write_text("import no_such_module_anywhere\n")
    for name, module in {"preference": "words_of_a_test", "broken": "broken_of_a_test"}.items():
        info = folder / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-package\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[dialog_eval.tasks]\n{name} = {module}\n")
    return folder


def run(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`dialog-eval` where these packages are installed."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return run_module("dialog_eval.cli", *arguments, environment={**os.environ, "PYTHONPATH": path})


def test_is_measured_from_the_command_line(site: Path, split: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    models = ["--checkpoint", clips[1], "--baseline", clips[0], "--device", "cpu"]
    words = ["red circle", "blue star"]
    done = run(
        site, "preference", *models, "--images", split / "images", "--out", out, "--word", words[0], "--other-word",
        words[1],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "preference: words, plain" in done.stdout
    entries = load_results(out).entries
    assert [entry.label for entry in entries] == ["base", "tuned"]
    images = [image_path(split, SUBSET, index) for index in range(SUBSET.limit)]
    found = [entry.metrics[0].values for entry in entries]
    for values, folder in zip(found, clips, strict=True):
        model = ReferenceModel(folder)
        scores = model.images(images) @ model.texts(words).T
        assert values == (scores[:, 0] > scores[:, 1]).double().tolist()
    assert found[0] != found[1], "a test that can tell"
    # In the table under its title where it is installed, else under its name.
    assert run(site, "table", out, "--out", tmp_path / "there.md").returncode == 0
    there = (tmp_path / "there.md").read_text()
    assert "Preference of words: words, plain" in there
    assert "No task here has a headline figure" in there
    write_table([out], tmp_path / "here.md")
    assert "preference: words, plain" in (tmp_path / "here.md").read_text()


def test_help_shows_it_with_its_options(site: Path) -> None:
    done = run(site, "--help")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    for said in ("preference Whether images are nearer to", "broken Cannot be used", "retrieval", "sweep"):
        assert said in shown
    done = run(site, "preference", "--help")
    assert "--other-word" in done.stdout
    assert "Than to this." in done.stdout


def test_one_that_cannot_be_imported_is_named(site: Path, tmp_path: Path) -> None:
    done = run(site, "broken", "--checkpoint", "x", "--out", tmp_path / "x.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for said in (
        "error: evaluation task 'broken' of the package broken-package",
        "no_such_module_anywhere",
        "retrieval",
    ):
        assert said in done.stderr


def test_one_that_redefines_a_common_option_is_named(site: Path) -> None:
    (site / "words_of_a_test.py").write_text(TASK.replace("other_word", "device"))
    done = run(site, "preference", "--word", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: evaluation task 'preference': its option 'device' is one of all evaluations; rename it.\n"
    )


def test_the_others_work_beside_it(site: Path, split: Path, tmp_path: Path) -> None:
    arguments = ["--captions", captions(split), "--images", split / "images", "--out", tmp_path / "x.json"]
    done = run(site, "retrieval", "--checkpoint", "ViT-B-33", *arguments)
    assert done.returncode == 2
    assert "unknown model" in done.stderr
