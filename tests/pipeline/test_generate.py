"""`generate`, as a program calls it: what it returns, says and refuses."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_images
from helpers.rows import rows_of
from helpers.runs import make_generator, run

from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation.run import generate

IMAGES = 6


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "shapes-llava",
        "images": write_images(tmp_path / "images", IMAGES),
        "out": tmp_path / "out",
        "shard_size": 2,
    }


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    scripted = ScriptedEngine()

    def start(spec: EngineSpec, log: Path) -> ScriptedEngine:
        scripted.closed = 0
        return scripted.start(log)

    monkeypatch.setattr(EngineSpec, "start", start)
    return scripted


def test_the_result_is_that_of_the_whole_dataset(
    settings: dict[str, Any], engine: ScriptedEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    engine.malformed = {sha256(png(3)): EVERY}
    first = generate(**settings, limit=2)
    whole = generate(**settings)
    assert (first.images, first.accepted, first.problem) == (2, 2, None)
    assert (whole.images, whole.accepted, whole.rejected, whole.unreadable, whole.problem) == (6, 5, 1, 0, None)
    assert whole.out == str(settings["out"])
    assert whole.summary == unsealed((settings["out"] / "run.json").read_bytes())
    assert (whole.summary["run"]["images"], whole.summary["run"]["images_already_done"]) == (4, 2)
    assert "6 images in 3 shards" in whole.text
    lossy = generate(**settings, max_losses=0.1)
    assert lossy.problem is not None
    assert lossy.problem.startswith("1 of 6 images gave no dialogue, more than --max-losses 0.1 allows")
    assert capfd.readouterr() == ("", "")


def test_gates_are_applied(settings: dict[str, Any], engine: ScriptedEngine) -> None:
    result = generate(**settings, gates="length,leak")
    assert result.summary["gates"] == unsealed((settings["out"] / "gates.json").read_bytes())
    assert "18 of 18 pairs kept" in result.text


def test_a_dry_run_writes_nothing(settings: dict[str, Any], engine: ScriptedEngine) -> None:
    result = generate(**settings, dry_run=True)
    assert "6 images in 3 shards" in result.text
    assert result.summary["config"]["model"] == "shapes-llava"
    assert (engine.starts, result.images, settings["out"].exists()) == (0, 0, False)


def test_progress_goes_to_the_end(settings: dict[str, Any], engine: ScriptedEngine) -> None:
    calls: list[tuple[str, int, int | None, str, str]] = []

    def on_progress(stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        calls.append((stage, done, total, unit, note))

    engine.malformed = {sha256(png(3)): EVERY}
    generate(**settings, gates="set_duplicate", on_progress=on_progress)
    dialogues = [call for call in calls if call[0] == "dialogues"]
    assert dialogues[0] == ("dialogues", 0, None, "", "starting the engine")
    assert [done for _, done, *_ in dialogues] == sorted(done for _, done, *_ in dialogues)
    assert dialogues[-1][1] == IMAGES
    assert dialogues[-1][4] == "1 rejected"
    assert {call[2] for call in dialogues} <= {None, IMAGES}
    assert ("quality gates: reading all pairs", 5, 5, "images", "") in calls
    assert calls[-1] == ("quality gates", 5, 5, "images", "")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"limit": 0}, "--limit 0 is too small: give at least 1"),
        ({"shard_size": 0}, "--shard-size 0 is too small: give at least 1"),
        ({"limit": 10**400}, "--limit 1e400 is too large: give at most 1000000000000000"),
        ({"limit": -(10**400)}, "--limit -1e400 is too small: give at least 1"),
        ({"seed": 2**63}, "--seed 9223372036854775808 is too large: give at most 9223372036854775807"),
        ({"attempts": 3 * 10**9}, "--attempts 3000000000 is too large: give at most 1000"),
        ({"shard_size": 2**70}, "--shard-size 1e21 is too large"),
        ({"min_pixels": 999999999999}, "--min-pixels 999999999999 is too large: give at most 1073741824"),
        ({"max_pixels": 999999999999}, "--max-pixels 999999999999 is too large: give at most 1073741824"),
        ({"engine_timeout": float("inf")}, "--engine-timeout inf is too large"),
        ({"gpu_hour_price": float("inf")}, "--gpu-hour-price inf is too large"),
        ({"temperature": 1e-300}, "--temperature 1e-300: 0, which takes the most likely token, or at least 0.01"),
        ({"max_losses": float("nan")}, "--max-losses nan is too small: give at least 0"),
        ({"engine": "vlm"}, "--engine vlm: unknown engine; did you mean 'vllm'"),
        ({"executor": "rey"}, "--executor rey: unknown executor; did you mean 'ray'"),
        ({"temperature": 9}, "--temperature 9"),
        ({"gates": "lenght"}, "did you mean 'length'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], engine: ScriptedEngine, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        generate(**{**settings, **wrong})
    assert not settings["out"].exists()


# Made by the code of November 2026, in which requests held rendered prompts: (prompt_sha256, hash of the rows below).
# The scripted engine's answers are a function of the rendered prompt.
STORED = {
    "llava-3qa": (
        "d6e7cd37b47777535e57d219860e11f446e4a4c0f3d2406d9958ec2fdc6ac2d9",
        "360565ba201e09f81c5126b4a1ec69e8d90f91f23935ddfd67558143a251a548",
    ),
    "blip2-two-turn": (
        "87c5d7e063920c1fb97cebbfd80fddfa7ef478d63318bbf2f45bd29dfa5362a1",
        "536be6e48ce117a1db2cfa7eba6cc1e2a9c23e053af82a6e46f941de677da680",
    ),
}
COLUMNS = ("image_id", "texts", "raw", "reason", "finish_reasons", "attempts", "sampling", "prompt_sha256", "protocol")
COLUMNS += ("model", "model_revision")


@pytest.mark.parametrize("protocol", STORED)
def test_rows_and_prompts_are_those_of_before(tmp_path: Path, protocol: str) -> None:
    engine = ScriptedEngine(malformed={sha256(png(2)): [1], sha256(png(5)): EVERY}, blind={sha256(png(7)): [1]})
    generator, out = make_generator(protocol), tmp_path / "out"
    run(write_images(tmp_path / "in", 12), out, engine, generator=generator, shard_size=5)
    rows = [[row.get(name) for name in COLUMNS] for part in ("data", "rejects") for row in rows_of(out, part)]
    assert len(rows) == 12
    found = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    assert (generator.prompt_sha256, found) == STORED[protocol]
