"""Settings that only some engines have: who accepts them, where they are recorded, and what vLLM does with them."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.engine import ScriptedEngine
from helpers.inputs import write_images
from vllm.platforms import current_platform

from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.engines.base import EngineOptions
from dialog_gen.engines.start import EngineSpec
from dialog_gen.engines.vllm import engine
from dialog_gen.engines.vllm.engine import engine_arguments
from dialog_gen.generation.run import generate
from dialog_gen.models.registry import resolve_model
from dialog_gen.protocols.protocol import Sampling

SETTINGS: dict[str, Any] = {
    "kv_cache_dtype": "fp8",
    "quantization": "fp8",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 4096,
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(EngineSpec, "start", lambda spec, log: ScriptedEngine().start(log))
    return {"model": "shapes-llava", "images": write_images(tmp_path / "images", 3), "out": tmp_path / "out"}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_engine_without_the_setting_refuses_it(settings: dict[str, Any], name: str) -> None:
    flag = f"--{name.replace('_', '-')} {SETTINGS[name]}"
    with pytest.raises(UsageError, match=f"{flag}: the engine transformers has no such setting.*--engine vllm"):
        generate(**settings, engine="transformers", **{name: SETTINGS[name]})
    assert not settings["out"].exists()


@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens"])
def test_too_small(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} 0 is too small"):
        generate(**settings, **{name: 0})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kv_cache_dtype": "fp9"}, "--kv-cache-dtype fp9: .*did you mean 'fp8'.*Known: auto, .*fp8"),
        ({"quantization": "fp8"}, "--quantization fp8: vLLM's build for CPUs does not quantise weights"),
    ],
)
def test_names_are_checked_against_the_installed_vllm(
    settings: dict[str, Any], given: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=said):
        generate(**settings, **given)
    assert capfd.readouterr().out == ""
    assert not settings["out"].exists()


def test_a_wrong_name_is_all_that_is_said(settings: dict[str, Any]) -> None:
    flags = ["--model", settings["model"], "--images", settings["images"], "--out", settings["out"]]
    command = [sys.executable, "-m", "dialog_gen", "run", *map(str, flags), "--kv-cache-dtype", "fp9"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --kv-cache-dtype fp9: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["max_cost", "price_input", "price_output"])
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_prices_of_tokens_are_for_servers(settings: dict[str, Any], name: str, engine: str) -> None:
    given: dict[str, Any] = {**settings, "engine": engine, name: 3}
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} 3: the engine {engine} runs the model itself"):
        generate(**given)
    assert not settings["out"].exists()


@pytest.mark.parametrize(
    ("name", "stored", "dtype", "said"),
    [
        ("fp8_per_chanel", None, "bfloat16", "--quantization fp8_per_chanel: .*did you mean 'fp8_per_channel'"),
        # It needs a calibrated checkpoint.
        ("awq", None, "bfloat16", "--quantization awq: .*Known: fp8, "),
        ("fp8", {"quant_method": "awq"}, "bfloat16", r"shapes-llava are quantised already \(awq\)"),
        # The embedded model is in float32.
        ("fp8", None, None, "cannot use it with float32; add --dtype bfloat16"),
        ("fp8", None, "bfloat16", None),
    ],
)
def test_quantisation_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, name: str, stored: Any, dtype: str | None, said: str | None
) -> None:
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    model = resolve_model("shapes-llava")
    if stored:
        model.config["quantization_config"] = stored
    options = EngineOptions(quantization=name, dtype=dtype)
    spec = EngineSpec(name="vllm", model=model, sampling=Sampling(), options=options)
    with nullcontext() if said is None else pytest.raises(UsageError, match=said):
        spec.check()


def test_what_changes_texts_is_configuration_and_what_changes_speed_is_not(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "has_fp8_cache", lambda: True)
    plain = generate(**settings)
    assert not SETTINGS.keys() & plain.summary["config"].keys()  # datasets from before these settings go on
    again = generate(**settings, max_num_seqs=16, max_num_batched_tokens=4096, kv_cache_dtype="auto")
    assert again.summary["config"] == plain.summary["config"]
    assert again.summary["engine_options"] == {
        "max_in_flight": 256,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 4096,
    }
    with pytest.raises(UsageError, match="kv_cache_dtype"):
        generate(**settings, kv_cache_dtype="fp8")
    other = {**settings, "out": settings["out"].with_name("other"), "dtype": "bfloat16"}
    monkeypatch.setattr(current_platform, "is_cpu", lambda: False)
    config = generate(**other, kv_cache_dtype="fp8", quantization="fp8").summary["config"]
    assert (config["kv_cache_dtype"], config["quantization"]) == ("fp8", "fp8")


def test_arguments_of_vllm() -> None:
    model = resolve_model("shapes-llava")
    plain = engine_arguments(model, EngineOptions(max_in_flight=100))
    assert (plain["max_num_seqs"], plain["max_num_batched_tokens"]) == (100, 8192)
    assert not {"kv_cache_dtype", "quantization"} & plain.keys()
    given = engine_arguments(model, EngineOptions(**SETTINGS))
    assert {name: given[name] for name in SETTINGS} == SETTINGS


@pytest.mark.slow
def test_vllm_starts_with_them(dialog_gen_cli: Cli, tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items() if name != "quantization"]
    images, out = write_images(tmp_path / "images", 3), tmp_path / "out"
    done = dialog_gen_cli(
        "run",
        "--model=shapes-llava",
        f"--images={images}",
        f"--out={out}",
        "--max-losses=1",
        *flags,
    )
    if not engine.has_fp8_cache():
        assert done.code == 2
        assert done.error.startswith("error: --kv-cache-dtype fp8: vLLM needs a processor with AVX-512")
        assert not out.exists()
        pytest.skip("this processor cannot read a KV cache in fp8, and the run refuses it")
    assert done.code == 0, done
    found = unsealed((out / "run.json").read_bytes())
    assert found["run"]["images"] == 3
    assert found["config"]["kv_cache_dtype"] == "fp8"
    # A request with an image has a prompt of at least its 16 image tokens.
    assert found["run"]["requests"] >= 3
    assert found["run"]["prompt_tokens"] >= 16 * found["run"]["requests"]
