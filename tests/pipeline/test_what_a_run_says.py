"""What a run says to people: what starts, what the model does not know, counts with right plurals."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_images
from helpers.runs import run
from helpers.terminal import on_terminal
from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.dataset.record import STATEMENTS
from dialog_gen.executors.base import EngineStarted, RowDone, ShardCommitted, ShardSkipped
from dialog_gen.gates.base import why_unscored
from dialog_gen.generation.bounds import LoadTally, bounds_text
from dialog_gen.generation.plan import RunPlan
from dialog_gen.generation.run import _RunProgress, generate, plan_of, with_defaults
from dialog_gen.generation.start_notice import start_notice
from dialog_gen.generation.summary import RunResult
from dialog_gen.shapes.recognise import is_drawn
from dialog_gen.shapes.render import render, through_jpeg
from dialog_gen.shapes.scenes import draw_scene
from dialog_gen.sources.base import InputShard


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 12)


@pytest.fixture
def plan(images: Path, tmp_path: Path) -> RunPlan:
    arguments = with_defaults({"model": "shapes-llava", "images": str(images), "engine": "transformers"})
    arguments.pop("out", None)
    return plan_of(str(tmp_path / "out"), arguments, starts=False)


@pytest.mark.parametrize(
    ("count", "noun", "expected"),
    [
        (0, "image", "0 images"),
        (1, "image", "1 image"),
        (2, "retry", "2 retries"),
        (1, "retry", "1 retry"),
        (2, "key", "2 keys"),
        (3, "question-answer pair", "3 question-answer pairs"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_count_has_its_noun_in_the_right_form(count: int, noun: str, expected: str) -> None:
    assert count_of(count, noun) == expected


def test_thousands_are_separated_where_people_count() -> None:
    assert count_of(12345, "image", grouped=True) == "12,345 images"


def test_one_line_says_what_starts(plan: RunPlan) -> None:
    said = start_notice(plan, "/data/out/engine.log", None)
    assert said == (
        "starting transformers with shapes-llava, which knows drawn shapes only: about 2 s; "
        "its log: /data/out/engine.log"
    )


def test_the_last_run_says_how_long_a_start_takes(plan: RunPlan) -> None:
    for seconds, expected in ((4.4, "4 s"), (33, "30 s"), (100, "2 minutes"), (3600, "60 minutes")):
        last = {"engine": {"name": "transformers"}, "run": {"engine_start_seconds": seconds}}
        assert f": {expected} last time;" in start_notice(plan, "log", last)
    other: dict[str, Any] = {"engine": {"name": "vllm"}, "run": {"engine_start_seconds": 4.4}}
    assert "about 2 s" in start_notice(plan, "log", other)


def test_the_bar_of_a_run_that_was_faster_than_the_count_is_full() -> None:
    """The images are counted in a thread, which may come after a run that has nothing to do."""
    counted, shown = Event(), list[tuple[str, int, int | None]]()

    def shards() -> Iterator[InputShard]:
        counted.wait()
        yield from ()

    def on_progress(stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        shown.append((stage, done, total))

    with _RunProgress(shards, RunResult(images_skipped=32), on_progress):
        assert shown == [("dialogues", 32, None)]
    counted.set()
    assert shown[-1] == ("dialogues", 32, 32)


def test_an_engine_that_starts_at_once_needs_no_line(plan: RunPlan) -> None:
    assert start_notice(replace(plan, engine=replace(plan.engine, name="openai")), "log", None) == ""


def test_a_plan_says_what_the_model_knows(images: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("run", "--model", "shapes-llava", "--images", images, "--out", "out", "--dry-run")
    assert "  shapes-llava knows drawn shapes only\n" in ended.out


def test_images_of_the_embedded_world_are_told_from_others() -> None:
    drawn = [render(draw_scene("train", 0, number)) for number in range(300)]
    assert all(map(is_drawn, drawn))
    assert all(is_drawn(through_jpeg(image)) for image in drawn)
    larger = drawn[0].resize((640, 480))
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    gradient = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    assert not any(map(is_drawn, (larger, noise, gradient)))


def test_skipped_shards_count_as_in_the_summary() -> None:
    result = RunResult()
    result.add(ShardSkipped(shard="a", images=9, rejected=2, unreadable=1))
    result.add(ShardSkipped(shard="b", images=5, rejected=1))
    assert (result.images_skipped, dict(result.lost_before)) == (14, {"rejected": 3, "unreadable": 1})


def test_a_run_that_nothing_bounds_says_so_in_words() -> None:
    said = bounds_text(LoadTally().summary(), gpu_hours=0, cost=None)
    assert "nothing" not in said
    assert said.startswith("  bound by no single part")


def test_the_list_of_models_fits_the_terminal(tmp_path: Path) -> None:
    code, said = on_terminal(tmp_path, "dialog_gen", "models", COLUMNS="100")
    assert code == 0
    lines = re.sub(r"\x1b\[\d*m", "", said).splitlines()
    assert max(map(len, lines)) <= 100
    assert "knows drawn shapes only" in said
    assert "dialog-gen models --json" in said


def test_the_list_of_models_is_whole_for_programs(dialog_gen_cli: Cli) -> None:
    (found,) = [row for row in json.loads(dialog_gen_cli("models", "--json").out) if row["name"] == "llava-1.5-7b"]
    assert (found["source"], found["licence"], found["image_tokens"], found["knows"]) == (
        "llava-hf/llava-1.5-7b-hf",
        "Llama 2 Community",
        "576",
        None,
    )


def test_verify_misses_a_column_of_statements(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    run(images, tmp_path / "out", ScriptedEngine(), config={"model": "m", STATEMENTS: True})
    ended = dialog_gen_cli("verify", tmp_path / "out")
    assert ended.code == 1
    assert f"lacks columns of the record or has them of another type: ['{STATEMENTS}']" in ended.out


@pytest.mark.parametrize(
    ("gate", "expected"),
    [("yes_bias", "100 yes/no answers or more (least_answers)"), ("set_duplicate", "12 words or more")],
)
def test_a_gate_that_scores_nothing_says_why(
    images: Path, tmp_path: Path, dialog_gen_cli: Cli, gate: str, expected: str
) -> None:
    run(images, tmp_path / "out", ScriptedEngine(malformed={sha256(png(3)): EVERY}))
    (tmp_path / "gates.toml").write_text(f"[{gate}]\n" + ("least_words = 99\n" if gate == "set_duplicate" else ""))
    said = dialog_gen_cli("gate", tmp_path / "out", "--gates", tmp_path / "gates.toml").out
    assert f"{gate} scored no pair: it scores " in said
    assert expected.replace("12", "99") in said


def test_a_gate_of_another_package_need_not_say_why() -> None:
    assert why_unscored("unknown", {}) == ""


def test_a_folder_that_exists_is_named_in_the_error(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    run(images, tmp_path / "out", ScriptedEngine())
    ended = dialog_gen_cli("export", tmp_path / "out", "--to", "llava", "--out", images)
    assert ended.mistake == f"error: --out {images} exists already: choose another folder.\n"


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [("images", "nowhere", "nothing is at .*nowhere"), ("out", "", "is no dataset folder, it holds 'a.png'")],
)
def test_a_wrong_folder_is_told_before_the_model_is_looked_at(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str, expected: str
) -> None:
    def slow(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was looked at")

    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "a.png").write_bytes(png(0))
    monkeypatch.setattr("dialog_gen.generation.plan.resolve_model", slow)
    given = {"images": str(images), "out": str(tmp_path / "out"), flag: value or str(taken)}
    with pytest.raises(UsageError, match=expected):
        generate(model="shapes-llava", images=given["images"], out=given["out"])


def test_a_run_knows_how_many_images_are_in_unfinished_shards() -> None:
    result = RunResult()
    result.add(EngineStarted(name="e", version="1", deterministic=True, seconds=1))
    for shard, image in (("a", 0), ("a", 1), ("b", 2)):
        result.add(RowDone(status="accepted", output_tokens=9, image_id=str(image), shard=shard))
    assert (result.images, result.unfinished) == (3, 3)
    result.add(ShardCommitted(shard="a", accepted=2, rejected=0, unreadable=0, redone=False))
    assert (result.images, result.unfinished) == (3, 1)
