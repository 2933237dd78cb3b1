"""A gate that another package adds, in one file, used from the real command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.engine import ScriptedEngine
from helpers.inputs import write_images
from helpers.rows import files_of, rows_of
from helpers.runs import run

from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify

GATE = """
from dialog_gen.gates.base import GATES, Gate, Limit, Limits


class PolitenessSettings(Limits):
    min: Limit = 0.5
    word: str = "please"


@GATES.register("politeness")
class Politeness(Gate[PolitenessSettings]):
    description = "1 if the answer is polite"
    settings_class = PolitenessSettings
    libraries = ("polite-gates",)

    def score_row(self, row):
        return [float(self.settings.word in pair["assistant"]) for pair in row["texts"]]
"""
SAID = "1. Q: What is it? A: A dog, please. 2. Q: What color is it? A: Red. 3. Q: Where is it? A: Here, please look."
POLITE, WORDS = [1.0, 0.0, 1.0], [3.0, 1.0, 3.0]


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with an installed package that adds the gate, and one whose gate cannot be imported."""
    folder = tmp_path / "site"
    for name, module, text in (("polite", "politeness", GATE), ("rude", "rudeness", "import no_such_module_anywhere")):
        info = folder / f"{name}_gates-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-gates\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[dialog_gen.gates]\n{module} = gates_of_{name}\n")
        (folder / f"gates_of_{name}.py").write_text(text)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    run(write_images(tmp_path / "images", 3), tmp_path / "out", ScriptedEngine(say=lambda request: SAID))
    return tmp_path / "out"


def command(packages: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(packages), *sys.path])
    return subprocess.run(
        [sys.executable, "-m", "dialog_gen.cli.app", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def stored(dataset: Path) -> list[dict[str, Any]]:
    """For each row its gates: name -> (scores, marks), one a pair."""
    return [
        {
            each["gate"]: (
                [pair[place]["score"] for pair in row["gates"]],
                [pair[place]["marked"] for pair in row["gates"]],
            )
            for place, each in enumerate(row["gates"][0])
        }
        for row in rows_of(dataset)
    ]


def test_its_scores_and_marks_are_stored(packages: Path, dataset: Path) -> None:
    done = command(packages, "gate", dataset, "--gates", "length,politeness", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    assert summary["gates"]["politeness"] == {"scored": 9, "marked": 3, "marked_alone": 3, "rate": 0.333333}
    assert summary["settings"]["politeness"] == {"min": 0.5, "max": None, "word": "please"}
    assert summary["versions"]["polite-gates"] == "1.5"
    expected = {"length": (WORDS, [False] * 3), "politeness": (POLITE, [False, True, False])}
    assert stored(dataset) == [expected] * 3
    assert verify(DatasetFolder(str(dataset))).problems == []


def test_its_settings_are_read_from_toml(packages: Path, dataset: Path, tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    file.write_text('[politeness]\nword = "Red"\nmin = -inf\n')
    assert command(packages, "gate", dataset, "--gates", file).returncode == 0
    assert stored(dataset) == [{"politeness": ([0.0, 1.0, 0.0], [False] * 3)}] * 3
    file.write_text("[politeness]\nwords = 3\n")
    refused = command(packages, "gate", dataset, "--gates", file)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "politeness.words: unknown key; did you mean 'word'? Known: max, min, word" in refused.stderr


def test_it_is_listed_after_the_gates_of_the_product(packages: Path) -> None:
    (packages / "gates_of_rude.py").write_text(GATE.replace("politeness", "rudeness"))
    lines = command(packages, "gates").stdout.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == ["self_consistency", "politeness", "rudeness"]
    assert lines[-2].split(maxsplit=1)[1].strip() == "at least 0.5  1 if the answer is polite"


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            "length,rudeness",
            ["gate 'rudeness' of the package rude-gates cannot be imported", "no_such_module_anywhere"],
        ),
        ("length,politenes", ["unknown gate 'politenes': did you mean 'politeness'?", "Known: all, empty, language,"]),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(packages: Path, dataset: Path, spec: str, told: list[str]) -> None:
    ended = command(packages, "gate", dataset, "--gates", spec)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert [words for words in [*told, "Known: ", "politeness"] if words not in ended.stderr] == []
    assert not (dataset / "gates.json").exists()


@pytest.mark.parametrize("spec", ["length", "text"])
def test_a_gate_that_cannot_be_imported_is_in_nobody_elses_way(packages: Path, dataset: Path, spec: str) -> None:
    ended = command(packages, "gate", dataset, "--gates", spec)
    assert ended.returncode == 0
    assert ("cannot be imported" in " ".join(ended.stderr.split())) == (spec == "text")


def test_a_gate_that_leaves_a_pair_out_is_named(packages: Path, dataset: Path) -> None:
    module = packages / "gates_of_polite.py"
    module.write_text(GATE.replace('in row["texts"]]', 'in row["texts"][1:]]'))
    before = files_of(dataset)
    ended = command(packages, "gate", dataset, "--gates", "politeness")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: gate 'politeness' did not give one score for each pair: mend its package.\n"
    assert files_of(dataset) == before
