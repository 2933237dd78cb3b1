"""The code of docs/extend/ does what its page says: it is taken from the page and run as a package of somebody else."""

import importlib
import json
import math
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import SUBSET, ReferenceModel, image_path, write_clips, write_split
from helpers.forks import run_module
from helpers.inputs import png
from helpers.rows import make_row, marks_of, rows_of, scores_of, shard_of, write_shard
from helpers.shown import DOCS, files_shown, install_shown

from dialog_gen.dataset.writer import open_writer
from dialog_gen.protocols.protocol import load_protocol
from dialog_gen.shapes.files import ShapesSubset

PROGRAMS = {"dialog-gen": "dialog_gen", "dialog-train": "dialog_train", "dialog-eval": "dialog_eval.cli"}


def run(folder: Path, program: str, *arguments: object, code: int = 0) -> str:
    """A command where the package in `folder` is installed, run in that folder; what it prints to stdout."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ended = run_module(PROGRAMS[program], *arguments, environment=environment, cwd=folder)
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported in this process."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_every_page_is_tested() -> None:
    assert {path.stem for path in (DOCS / "extend").glob("*.md")} == {"protocol", "gate", "source", "loss", "task"}


PROTOCOLS = files_shown("extend/protocol.md")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_is_valid_and_its_prompts_are_asked(name: str, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    (tmp_path / name).write_text(PROTOCOLS[name])
    protocol = load_protocol(str(tmp_path / name))
    assert protocol.pairs == {"street.toml": 3, "follow-up.toml": 2, "list.toml": 4}[name]
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(png(1))
    given = ("--model", "shapes-llava", "--engine", "transformers", "--protocol", tmp_path / name)
    shown = dialog_gen_cli("run", *given, "--images", tmp_path / "images", "--out", tmp_path / "out", "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    assert all(turn.user.partition("{")[0] in shown.out for turn in protocol.turns)


@pytest.mark.slow
def test_protocol_makes_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "street.toml").write_text(PROTOCOLS["street.toml"])
    split = write_split(tmp_path / "world", ShapesSubset(split="test", seed=0, limit=2, shard_size=2))
    given = ("--model", "shapes-llava", "--engine", "transformers", "--images", split / "images", "--out", "out")
    run(tmp_path, "dialog-gen", "run", *given, "--protocol", "street.toml", "--max-losses", 1)
    for row in rows_of(tmp_path / "out"):
        assert [pair["user"] for pair in row["texts"]] == [
            "What vehicles are in this image?", "What is the weather like?", "How many people are in this image?"
        ]  # fmt: skip


def test_gate_scores_and_marks(tmp_path: Path) -> None:
    install_shown("extend/gate.md", tmp_path)
    answers = ["A red bus.", "Perhaps a bus, maybe a tram.", "It is UNCLEAR.", "I think it is a bus, maybe."]
    pairs = [{"user": "What is it?", "assistant": answer} for answer in answers]
    with open_writer(str(tmp_path / "set"), {"model": "m", "engine": "e"}) as store:
        write_shard(store, shard_of("s0", 1), [make_row(0, texts=pairs)])
    run(tmp_path, "dialog-gen", "gate", "set", "--gates", "hedging")
    (row,) = rows_of(tmp_path / "set")
    assert scores_of(row, "hedging") == [0, 2, 1, 1]
    assert [bool(marks) for marks in marks_of(row)] == [False, True, True, True]
    run(tmp_path, "dialog-gen", "gate", "set", "--gates", "gates.toml")
    (row,) = rows_of(tmp_path / "set")
    assert scores_of(row, "hedging") == [0, 1, 0, 2]
    assert [bool(marks) for marks in marks_of(row)] == [False, False, False, True]


def test_source_is_read(imported: Path) -> None:
    install_shown("extend/source.md", imported)
    with closing(sqlite3.connect(imported / "images.sqlite")) as database:
        database.execute("CREATE TABLE images (id TEXT PRIMARY KEY, data BLOB, caption TEXT)")
        rows = [("b", png(2), "two"), ("a", png(1), None), ("c", None, "lost"), ("d", png(4), "four")]
        database.executemany("INSERT INTO images VALUES (?, ?, ?)", rows)
        database.commit()
    given = ("--model", "shapes-llava", "--engine", "transformers", "--images", "images.sqlite", "--out", "out")
    shown = run(imported, "dialog-gen", "run", *given, "--dry-run")
    assert "3 images in 1 shard" in shown
    assert "1 text without an image" in shown
    module = importlib.import_module("sqlite_source")
    part = module.SqliteImages(str(imported / "images.sqlite"), "images.sqlite")
    index = [reference for reference in part.index() if hasattr(reference, "image_id")]
    read = [(image.image_id, image.data, image.caption) for image in part.read(tuple(index))]
    assert read == [("a", png(1), None), ("b", png(2), "two"), ("d", png(4), "four")]
    assert [reference.sizes for reference in index] == [(len(data),) for _, data, _ in read]


def test_loss_is_the_sum_by_hand(imported: Path) -> None:
    install_shown("extend/loss.md", imported)
    loss = importlib.import_module("smoothed_loss").smoothed_loss
    images = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2], [0.1, 1.0], [-1.0, 0.5]]), dim=1)
    texts = torch.nn.functional.normalize(torch.tensor([[0.9, 0.1], [0.3, 1.0], [-0.2, 1.0]]), dim=1)
    logits = [[4 * sum(a * b for a, b in zip(x, y, strict=True)) for y in texts.tolist()] for x in images.tolist()]

    def of_rows(rows: list[list[float]]) -> float:
        total = 0.0
        for place, row in enumerate(rows):
            log_sum = math.log(sum(map(math.exp, row)))
            for other, value in enumerate(row):
                total -= ((0.9 if other == place else 0.0) + 0.1 / len(row)) * (value - log_sum)
        return total / len(rows)

    expected = (of_rows(logits) + of_rows([list(column) for column in zip(*logits, strict=True)])) / 2
    assert loss(images, texts, torch.tensor(4.0)).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_loss_trains(tmp_path: Path) -> None:
    install_shown("extend/loss.md", tmp_path)
    split = write_split(tmp_path / "world")
    for number, path in enumerate(sorted((split / "images").rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"a red circle {number}")
    settings = {"loss": "smoothed", "data.images": split / "images", "data.work": "work", "out": "smoothed"}
    settings |= {"optim.batch_size": 4, "optim.max_steps": 2, "log.every_steps": 1, "log.tensorboard": "false"}
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert "smoothed_loss" in run(tmp_path, "dialog-train", "clip", "--config", "clip-shapes", *overrides)


@pytest.mark.slow
def test_task_is_measured(tmp_path: Path) -> None:
    install_shown("extend/task.md", tmp_path)
    split, (base, tuned) = write_split(tmp_path / "world"), write_clips(tmp_path)
    words = ["red circle", "blue star"]
    run(
        tmp_path, "dialog-eval", "preference", "--checkpoint", tuned, "--baseline", base, "--images", split / "images",
        "--word", words[0], "--other-word", words[1], "--out", "preference.json", "--device", "cpu",
    )  # fmt: skip
    entries = json.loads((tmp_path / "preference.json").read_text())["entries"]
    images = [image_path(split, SUBSET, index) for index in range(SUBSET.limit)]
    for entry, folder in zip(entries, (base, tuned), strict=True):
        model = ReferenceModel(folder)
        scores = model.images(images) @ model.texts(words).T
        assert entry["metrics"][0]["values"] == (scores[:, 0] > scores[:, 1]).double().tolist()
