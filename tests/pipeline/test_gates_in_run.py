"""Gates that a run applies with the engine of the dialogues: the same rows and scores as a pass afterwards."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_files, write_images
from helpers.rows import files_of, rows_of, scores_of

from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import DatasetWriter
from dialog_gen.engines.base import EngineDiedError, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.engines.transformers import TransformersEntry
from dialog_gen.gates.apply import GatePass, gate
from dialog_gen.generation.run import generate
from dialog_gen.protocols.protocol import Sampling
from dialog_gen.publish.compact import compact
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene

IMAGES = 20
ANSWERS = ("red", "blue", "a red star", "yes", "no")
ALONE = {"self_consistency": {"samples": 3}}
AMONG_OTHERS = {**ALONE, "length": {"min": 2}, "yes_bias": {"least_answers": 1, "max": 0.5}}


@dataclass
class Engines:
    """The engines that a test starts, in order; their answers depend on all that a model's answers depend on."""

    options: dict[str, Any] = field(default_factory=dict)
    started: list[ScriptedEngine] = field(default_factory=list)
    specs: list[EngineSpec] = field(default_factory=list)
    samplings: list[set[Sampling]] = field(default_factory=list)

    def start(self, spec: EngineSpec, log: Path) -> ScriptedEngine:
        log.touch()
        asked = set[Sampling]()

        def say(request: Request) -> str:
            sampling = request.sampling or spec.sampling
            asked.add(sampling)
            said = f"{request.messages}/{request.image_sha256}/{request.seed}/{sampling}"
            digest = hashlib.sha256(said.encode()).digest()
            words = [ANSWERS[byte % len(ANSWERS)] for byte in digest]
            if "1. Q:" not in request.messages[0].text:
                return words[0]
            return "\n".join(f"{i}. Q: What is at {i}{digest[i] % 9}? A: {words[i]}" for i in (1, 2, 3))

        self.started.append(ScriptedEngine(say=say, **self.options))
        self.specs.append(spec)
        self.samplings.append(asked)
        return self.started[-1]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    found = Engines()
    monkeypatch.setattr(EngineSpec, "start", lambda spec, log: found.start(spec, log))
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", IMAGES)


def run(images: Path, out: Path, gates: Mapping[str, Any] | None = None, **others: Any) -> Path:
    """`dialog-gen run`, with a file of gates."""
    if gates is not None:
        (out.parent / "gates.toml").write_text(
            "".join(
                f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in of_gate.items())
                for name, of_gate in gates.items()
            )
        )
    settings: dict[str, Any] = {"model": "shapes-llava", "engine": "transformers", "shard_size": 6, "seed": 3, **others}
    generate(images=images, out=out, gates=None if gates is None else str(out.parent / "gates.toml"), **settings)
    return out


def afterwards(images: Path, out: Path, gates: Mapping[str, Any], **others: Any) -> Path:
    """The same dataset, with a pass of its own for the gates."""
    gate(run(images, out, **others), gates)
    return out


def hashes(out: Path) -> list[tuple[str, str | None, dict[str, str]]]:
    return [(m.shard, m.gates_sha256, m.scores_sha256) for m in DatasetFolder(str(out)).manifests()]


def assert_equal(out: Path, other: Path) -> None:
    assert rows_of(out) == rows_of(other)
    assert rows_of(out, "rejects") == rows_of(other, "rejects")
    assert hashes(out) == hashes(other)
    assert (out / "gates.json").read_bytes() == (other / "gates.json").read_bytes()
    assert verify(DatasetFolder(str(out))).problems == []


@pytest.mark.parametrize("gates", [ALONE, AMONG_OTHERS], ids=["alone", "among others"])
def test_one_engine_gives_what_two_passes_give(
    gates: dict[str, Any], engines: Engines, images: Path, tmp_path: Path
) -> None:
    refused = {sha256(png(7)): EVERY}
    engines.options = {"refused": refused, "max_delay_s": 0.002}
    out = run(images, tmp_path / "out", gates)
    assert len(engines.started) == engines.started[0].closed == 1
    other = afterwards(images, tmp_path / "other", gates)
    assert len(engines.started) == 3
    assert_equal(out, other)
    plain = run(images, tmp_path / "plain")
    assert [{**row, "gates": None} for row in rows_of(out)] == rows_of(plain)
    scores = [scores_of(row, "self_consistency") for row in rows_of(out)]
    assert len(scores) == IMAGES - 1
    assert len({score for of_row in scores for score in of_row or ()}) > 2
    # The gate has a sampling of its own, at which it asks each question three times.
    assert {s.max_tokens for s in engines.samplings[0]} == {32, 192}
    assert len(engines.started[0].asked) == 1 + (IMAGES - 1) * (1 + 3 * 3)


def test_a_shard_that_a_run_has_scored_is_not_written_again(
    engines: Engines, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatasetWriter, "rewrite", lambda *_, **__: pytest.fail("a shard was written again"))
    out = run(images, tmp_path / "out", ALONE)
    before = files_of(out)
    gate(out, ALONE)
    assert files_of(out) == before
    assert len(engines.started) == 1


def test_a_run_that_dies_goes_on_to_the_same_scores(engines: Engines, images: Path, tmp_path: Path) -> None:
    other = run(images, tmp_path / "other", AMONG_OTHERS)
    asked = len(engines.started[0].asked)
    for dies_after in (5, asked // 2, asked - 1):
        out = tmp_path / f"{dies_after}"
        engines.options = {"dies_after": dies_after}
        with pytest.raises(EngineDiedError):
            run(images, out, AMONG_OTHERS, max_in_flight=1)
        engines.options = {}
        run(images, out, AMONG_OTHERS)
        assert_equal(out, other)
    assert len(engines.started) == 1 + 2 * 3


def test_a_pass_whose_engine_dies_says_so_and_goes_on(engines: Engines, images: Path, tmp_path: Path) -> None:
    other, out = run(images, tmp_path / "other", ALONE), run(images, tmp_path / "out")
    engines.options = {"dies_after": 100}
    with pytest.raises(EngineDiedError, match="the scripted engine died"):
        gate(out, ALONE)
    engines.options = {}
    gate(out, ALONE)
    assert_equal(out, other)


def test_other_settings_are_asked_anew_and_other_limits_are_not(engines: Engines, images: Path, tmp_path: Path) -> None:
    out = run(images, tmp_path / "out", ALONE)
    limits = {"self_consistency": {"samples": 3, "min": 0.1}, "length": {}}
    gate(out, limits)
    assert len(engines.started) == 1
    assert_equal(out, afterwards(images, tmp_path / "limits", limits))
    started = len(engines.started)
    colder = {"self_consistency": {"samples": 3, "temperature": 0.5}}
    gate(out, colder)
    assert len(engines.started) == started + 1
    assert_equal(out, afterwards(images, tmp_path / "colder", colder))
    # A pass without it takes its scores away: the next one has nothing to keep.
    gate(out, {"length": {}})
    started = len(engines.started)
    gate(out, colder)
    assert len(engines.started) == started + 1
    assert_equal(out, tmp_path / "colder")


def test_images_that_come_later_do_not_ask_about_the_earlier_ones(
    engines: Engines, images: Path, tmp_path: Path
) -> None:
    out = run(images, tmp_path / "out", AMONG_OTHERS, limit=6)
    run(images, out, AMONG_OTHERS)
    assert len(engines.started) == 2
    earlier, later = ({asked.image_sha256 for asked in engine.asked} for engine in engines.started)
    assert not earlier & later
    assert_equal(out, run(images, tmp_path / "whole", AMONG_OTHERS))


def test_larger_shards_keep_the_scores(engines: Engines, images: Path, tmp_path: Path) -> None:
    out = run(images, tmp_path / "out", ALONE)
    compact(str(out), str(tmp_path / "large"))
    gate(tmp_path / "large", AMONG_OTHERS)
    assert len(engines.started) == 1
    gate(out, AMONG_OTHERS)
    assert rows_of(tmp_path / "large") == rows_of(out)


@pytest.mark.parametrize(
    "settings", [{"model": "shapes-blip2"}, {"engine": "vllm"}, {}], ids=["model", "engine", "an engine of old"]
)
def test_what_the_engine_of_the_run_cannot_answer_is_asked_afterwards(
    settings: dict[str, Any], engines: Engines, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not settings:
        monkeypatch.setattr(TransformersEntry, "samples_per_request", False)
    gates = {"self_consistency": {"samples": 2, **settings}}
    out = run(images, tmp_path / "out", gates)
    assert len(engines.started) == 2
    assert [spec.model.name for spec in engines.specs] == ["shapes-llava", settings.get("model", "shapes-llava")]
    assert [spec.name for spec in engines.specs] == ["transformers", settings.get("engine", "transformers")]
    assert {s.max_tokens for s in engines.samplings[0]} == {192}
    assert_equal(out, afterwards(images, tmp_path / "other", gates))


def test_a_gate_that_is_refused_loses_no_dialogue(engines: Engines, images: Path, tmp_path: Path) -> None:
    # The first request about an image is its dialogue.
    engines.options = {"refused": {sha256(png(n)): range(2, 1000) for n in (0, 5)}}
    out = run(images, tmp_path / "out", ALONE)
    rows = rows_of(out)
    assert [{**row, "gates": None} for row in rows] == rows_of(run(images, tmp_path / "plain"))
    nothing = [row["image_id"] for row in rows if scores_of(row, "self_consistency") == [None] * 3]
    assert nothing == [rows[0]["image_id"], rows[5]["image_id"]]


def test_questions_of_gates_count_as_requests(engines: Engines, images: Path, tmp_path: Path) -> None:
    engines.options = {"max_delay_s": 0.01}
    run(images, tmp_path / "out", {"self_consistency": {"samples": 8}}, max_in_flight=6)
    # 64 are prepared in addition to those in flight; the questions are 480.
    assert 20 < engines.started[0].most_at_once <= 6 + 64


def test_the_gates_of_a_run_are_plain_data(images: Path) -> None:
    config = {"model": "shapes-llava", "engine": "transformers", "dtype": "float32", "max_model_len": 1024}
    gate_pass = GatePass.of(AMONG_OTHERS, config)
    spec: Any = type("Spec", (), {"name": "transformers"})
    gates = gate_pass.in_run(spec)
    assert gates is not None
    assert list(gates.settings) == ["self_consistency"]
    again = pickle.loads(pickle.dumps(gates))
    assert (again.settings, again.gates_sha256, again.scores_sha256) == (
        gates.settings,
        gates.gates_sha256,
        gates.scores_sha256,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("forked_vllm")
def test_vllm_gives_the_same_scores_in_a_run_and_afterwards(tmp_path: Path) -> None:
    """In float32 on a CPU, where the engine says that it is deterministic; here it gives log-probabilities, too."""
    others: dict[str, Any] = {"logprob": {}}
    images = write_files(tmp_path / "images", {f"{i:03d}.png": render_png(draw_scene("test", 9, i)) for i in range(48)})
    gates = {**others, **ALONE}
    settings: dict[str, Any] = {"engine": "vllm", "dtype": "float32", "shard_size": 20}
    out = run(images, tmp_path / "out", gates, **settings)
    other = run(images, tmp_path / "other", others, **settings)
    gate(other, gates)
    assert json.loads((out / "run.json").read_text())["engine"]["deterministic"]
    assert_equal(out, other)
    assert len({score for row in rows_of(out) for score in scores_of(row, "self_consistency") or ()}) > 3
