"""A run whose first images are all refused for one reason ends with that reason."""

from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_files, write_images
from helpers.rows import files_of, rows_of
from helpers.runs import run

from dialog_gen.core.errors import FailedCheckError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation import refusals
from dialog_gen.generation import runner as runner_module

IMAGES, ENOUGH = 60, 20


@pytest.fixture(autouse=True)
def after_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "STOP_AFTER", ENOUGH)
    monkeypatch.setattr(runner_module, "_PREPARED", 2)


def refused(*numbers: int) -> dict[str, range]:
    return {sha256(png(number)): EVERY for number in numbers}


def test_the_reason_an_example_and_what_to_do(tmp_path: Path) -> None:
    source, engine = write_images(tmp_path / "in", IMAGES), ScriptedEngine(malformed=refused(*range(IMAGES)))
    with pytest.raises(FailedCheckError, match=r"the first 20 images were all rejected: no_questions, such as '0") as e:
        run(source, tmp_path / "out", engine, shard_size=64, max_in_flight=2)
    assert "('...')" in str(e.value)
    assert "--keep-going" in str(e.value)
    assert e.value.exit_code == 1
    assert engine.closed == 1
    assert len({asked.image_sha256 for asked in engine.asked}) < 30
    # The shard that was in progress is not committed.
    assert not [name for name in files_of(tmp_path / "out") if "/" in name]
    result = run(source, tmp_path / "out", ScriptedEngine(), shard_size=64)
    assert result.counts == {"accepted": IMAGES}


def test_unreadable_images(tmp_path: Path) -> None:
    source = write_files(tmp_path / "in", {f"{n}.png": b"<html>\x1b[2J%d" % n for n in range(IMAGES)})
    with pytest.raises(FailedCheckError, match="were all unreadable: not_an_image, such as") as error:
        run(source, tmp_path / "out", ScriptedEngine(), shard_size=64)
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("other", ["accepted", "another reason", "another status"])
def test_one_other_outcome_is_enough_to_go_on(tmp_path: Path, other: str) -> None:
    source = write_images(tmp_path / "in", IMAGES)
    settings: dict[str, Any] = {"malformed": refused(*(n for n in range(IMAGES) if n != 7))}
    if other == "another reason":
        settings["blind"] = refused(7)
    if other == "another status":
        (source / "00007.png").write_bytes(b"")
    result = run(source, tmp_path / "out", ScriptedEngine(**settings), shard_size=64)
    assert result.images == IMAGES
    assert result.counts["rejected"] >= IMAGES - 1


def test_fewer_images_than_that_are_left_to_max_losses(tmp_path: Path) -> None:
    source, engine = write_images(tmp_path / "in", ENOUGH - 1), ScriptedEngine(malformed=refused(*range(IMAGES)))
    assert run(source, tmp_path / "out", engine, shard_size=64).counts == {"rejected": ENOUGH - 1}


def test_small_shards_of_refused_images_stay_and_are_not_counted_again(tmp_path: Path) -> None:
    source, out = write_images(tmp_path / "in", IMAGES), tmp_path / "out"
    refuse_all: dict[str, Any] = {"malformed": refused(*range(IMAGES))}
    left = IMAGES
    while left >= ENOUGH:
        with pytest.raises(FailedCheckError, match="the first 20 images were all rejected"):
            run(source, out, ScriptedEngine(**refuse_all), shard_size=4, max_in_flight=1)
        checked = verify(DatasetFolder(str(out)))
        assert checked.problems == []
        assert 0 < left - (IMAGES - checked.images) < ENOUGH
        left = IMAGES - checked.images
    assert run(source, out, ScriptedEngine(**refuse_all), shard_size=4, max_in_flight=1).images == left
    assert len(rows_of(out, "rejects")) == IMAGES


def test_a_dialogue_of_an_earlier_run_shows_that_the_settings_work(tmp_path: Path) -> None:
    source, out = write_images(tmp_path / "in", IMAGES), tmp_path / "out"
    engine = ScriptedEngine(malformed=refused(*range(4, IMAGES)))
    run(source, out, engine, shard_size=4, limit=8)
    assert run(source, out, ScriptedEngine(malformed=engine.malformed), shard_size=4).images == IMAGES - 8


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli) -> None:
    source, out = write_images(tmp_path / "in", IMAGES), tmp_path / "out"
    settings = ("--model", "shapes-llava", "--images", source, "--out", out, "--engine", "transformers")

    def start(spec: EngineSpec, log: Path) -> ScriptedEngine:
        return ScriptedEngine(malformed=refused(*range(IMAGES))).start(log)

    monkeypatch.setattr(EngineSpec, "start", start)
    ended = dialog_gen_cli("run", *settings)
    assert ended.code == 1
    assert "error: the first 20 images were all rejected: no_questions, such as '0" in ended.error
    ended = dialog_gen_cli("run", *settings, "--keep-going")
    assert ended.code == 1
    assert f"{IMAGES} of {IMAGES} images gave no dialogue, more than --max-losses" in ended.err
    assert len(rows_of(out, "rejects")) == IMAGES
    assert "keep_going" not in (out / "config.json").read_text()
    assert "timeout" not in (out / "config.json").read_text()
