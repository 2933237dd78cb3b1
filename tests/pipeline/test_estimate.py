"""`dialog-gen plan`: against figures of the literature, of vLLM on an H100, and of runs."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.architectures import KINDS
from helpers.asked import IMAGES, true_ids
from helpers.cli import Cli
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_images, write_tar
from PIL import Image

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation.run import generate
from dialog_gen.generation.speed import GPUS, speed
from dialog_gen.models.dimensions import Dimensions, dimensions
from dialog_gen.models.registry import MODELS, resolve_model
from dialog_gen.protocols.protocol import conversation


def released(name: str) -> Dimensions:
    sizes = MODELS.get(name).sizes
    assert sizes is not None
    return dimensions(name, sizes)


@pytest.mark.parametrize(
    ("name", "billions", "cache_kib", "image_tokens"),
    [
        # Llama 2's reports: 6.7 and 13.0 billion, of which the embedding is not in a layer; OPT's: 2.7 and 6.7.
        ("llava-1.5-7b", 6.74, 512, 576),
        ("llava-1.5-13b", 13.02, 800, 576),
        ("blip2-opt-2.7b", 2.65, 320, 32),
        ("blip2-opt-6.7b", 6.66, 512, 32),
    ],
)
def test_sizes_of_released_models(name: str, billions: float, cache_kib: int, image_tokens: int) -> None:
    found = released(name)
    # OPT's embedding is its output layer, Llama's is not.
    embeddings = 1 if "opt" in name else 2
    assert (found.layer_parameters + embeddings * found.head_parameters) / 1e9 == pytest.approx(billions, rel=0.01)
    assert found.cached_numbers * 2 / 1024 == cache_kib
    assert found.image_tokens == image_tokens


@pytest.mark.parametrize(
    ("types", "in_turn", "overlapped"),
    [
        ({}, 29, 50),
        ({"fp8_cache": True}, 42, 60),
        ({"fp8_cache": True, "fp8_weights": True}, 57, 96),
    ],
)
def test_llava_on_an_h100(types: dict[str, bool], in_turn: float, overlapped: float) -> None:
    """Images/s by an arithmetic made apart from this code, for 620 prompt and 120 answer tokens."""
    found = speed(released("llava-1.5-7b"), GPUS["H100"], prompt_tokens=620, new_tokens=620, output_tokens=120, **types)
    assert found.in_turn == pytest.approx(in_turn, rel=0.1)
    assert found.overlapped == pytest.approx(overlapped, rel=0.1)


def test_the_kv_cache_has_the_size_that_vllm_reported() -> None:
    found = speed(released("llava-1.5-7b"), GPUS["H100"], prompt_tokens=620, new_tokens=620, output_tokens=120)
    assert found.kv_cache_tokens == pytest.approx(117_088, rel=0.01)
    assert found.in_flight == pytest.approx(165, rel=0.05)


def test_a_count_of_images_and_prices() -> None:
    figures = dialog_gen.plan(
        images="3.3e6",
        model="llava-1.5-7b",
        rate=25,
        gpus=8,
        gpu_hour_price=3,
        price_input=0.5,
        price_output=2,
        answer_tokens=100,
    ).figures
    assert (figures["images"], figures["shards"], figures["requests"]) == (3_300_000, 3223, 3_300_000)
    assert figures["output_tokens"] == 330_000_000
    # 576 tokens of the image, and a short prompt.
    assert 600 < figures["prompt_tokens"] / 3_300_000 < 640
    assert figures["gpu_hours"] == [36.6667, 36.6667]
    assert figures["wall_hours"] == [4.5833, 4.5833]
    assert figures["price"]["gpus"] == [110, 110]
    assert figures["price"]["tokens"] == figures["prompt_tokens"] * 0.5e-6 + 660
    storage = figures["storage"]
    assert storage["with_images_bytes"] > 10 * storage["without_images_bytes"] > 0
    assert storage["sidecars"] == 3223


def test_a_second_turn_has_the_first_in_its_prompt() -> None:
    """BLIP-2's protocol: two requests, the second with the first answer before it."""
    short, long = (
        dialog_gen.plan(images=1000, model="blip2-opt-2.7b", answer_tokens=answer).figures for answer in (10, 40)
    )
    assert short["requests"] == 2000
    assert short["output_tokens"] == 20_000
    # A word and a space are three characters, which count as one token.
    assert long["prompt_tokens"] - short["prompt_tokens"] == pytest.approx(30 * 1000, rel=0.1)


def test_a_fallback_is_counted_for_its_share(tmp_path: Path) -> None:
    """A list of three pairs in one request; its fallback asks three questions."""
    first = '[[turns]]\nuser = "Ask 3 questions."\nparse = "qa-list"\npairs = 3\n'
    (tmp_path / "alone.toml").write_text(first)
    (tmp_path / "with.toml").write_text(f'fallback = "single-questions"\n{first}')
    given: dict[str, Any] = {"images": 1000, "model": "llava-1.5-7b", "answer_tokens": 10}

    def planned(protocol: str, **more: Any) -> dict[str, Any]:
        return dialog_gen.plan(protocol=protocol, **given, **more).figures

    with_fallback, alone = str(tmp_path / "with.toml"), planned(str(tmp_path / "alone.toml"))
    questions = planned("single-questions")
    assert (alone["requests"], questions["requests"]) == (1000, 3000)
    for share in (0, 0.1, 0.5, 1):
        both = planned(with_fallback, fallback_share=share)
        assert (both["fallback"], both["fallback_share"]) == ("single-questions", share)
        for name in ("requests", "prompt_tokens", "output_tokens"):
            assert both[name] == pytest.approx(alone[name] + share * questions[name], abs=1)
    assert planned(with_fallback) == planned(with_fallback, fallback_share=0.1)
    assert "fallback" not in alone


def test_several_images_in_a_dialogue_are_counted(tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    model = str(folder_of("internvl3"))
    members = {f"{key}.{number}.png": png(number) for key, count in (("a", 3), ("b", 1)) for number in range(count)}
    images = tmp_path / "images"
    images.mkdir()
    write_tar(images / "t.tar", members | {"a.cls": b"", "b.cls": b""})
    one, two, every = (
        dialog_gen.plan(images=str(images), model=model, protocol="blip2-two-turn", images_per_sample=wanted).figures
        for wanted in ("first", "2", "all")
    )
    assert every == two
    assert (two["images"], two["images_per_sample"]) == (2, 2)
    image = Image.open(io.BytesIO(png(0)))
    with_one, with_two = (len(true_ids(Path(model), conversation("?"), *[image] * number)) for number in (1, 2))
    # Two dialogues of two requests.
    assert two["prompt_tokens"] - one["prompt_tokens"] == 2 * 2 * (with_two - with_one)
    assert two["storage"]["with_images_bytes"] > one["storage"]["with_images_bytes"]


@pytest.mark.parametrize("name", KINDS)
def test_the_tokens_of_images_are_those_of_the_sources_sizes(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, images = folder_of(name), tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(IMAGES):
        image.save(images / f"{number}.png")
    (tmp_path / "p.toml").write_text('[[turns]]\nuser = "What is it?"\nparse = "answer"\n')
    given: dict[str, Any] = {"model": str(folder), "protocol": str(tmp_path / "p.toml"), "gpu": "L4"}
    asked = conversation("What is it?")
    planned = dialog_gen.plan(images=str(images), **given).figures
    assert planned["prompt_tokens"] == sum(len(true_ids(folder, asked, image)) for image in IMAGES)
    assert planned["images_per_second_per_gpu"][0] > 0
    counted = dialog_gen.plan(images=10, **given).figures
    assert counted["prompt_tokens"] == 10 * len(true_ids(folder, asked, Image.new("RGB", (640, 480))))
    fixed = resolve_model(str(folder)).architecture.fixed_image_tokens
    assert (counted["tokens_basis"] == planned["tokens_basis"] + ", images of 640 x 480 pixels") is not fixed


def test_fewer_pixels_are_fewer_tokens(folder_of: Callable[[str], Path], dialog_gen_cli: Cli) -> None:
    given = ("plan", "--model", folder_of("qwen2.5-vl"), "--images", 100, "--json")
    most, least = (json.loads(dialog_gen_cli(*given, *more).out) for more in ((), ("--max-pixels", 56 * 56)))
    assert least["prompt_tokens"] < most["prompt_tokens"]


def test_the_sizes_of_qwen() -> None:
    """Qwen2.5-7B has 6.53 billion parameters beside its embeddings (arXiv 2412.15115); a token is 4 patches."""
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    text |= {"num_attention_heads": 28, "num_key_value_heads": 4, "model_type": "qwen2_5_vl_text"}
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "spatial_merge_size": 2}
    config = {"model_type": "qwen2_5_vl", "text_config": text, "vision_config": vision}
    found = dimensions("qwen", config, 391)
    assert found.layer_parameters / 1e9 == pytest.approx(6.53, rel=0.01)
    assert (found.image_tokens, found.vision_tokens, found.vision_layers) == (391, 4 * 391, 32)
    with pytest.raises(UsageError, match="does not say how many tokens an image takes"):
        dimensions("qwen", config)


def test_an_image_in_tiles_costs_each_of_them() -> None:
    """A LLaVA-NeXT reads an image in five tiles of 576 patches."""
    sizes = MODELS.get("llava-1.5-7b").sizes
    assert sizes is not None
    one, five = (dimensions("llava", sizes, tokens) for tokens in (576, 5 * 576))
    assert (one.vision_tiles, five.vision_tiles, five.vision_tokens) == (1, 5, 576)


def test_a_mixture_of_experts_has_no_estimate() -> None:
    config = {"model_type": "qwen3_vl_moe", "text_config": {"num_experts": 8}, "vision_config": {}}
    with pytest.raises(UsageError, match=r"mixture of experts.*give --rate"):
        dimensions("qwen", config, 391)


def test_a_source_is_listed(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 10)
    figures = dialog_gen.plan(images=str(images), model="llava-1.5-7b", shard_size=4, gpu="none").figures
    assert (figures["images"], figures["shards"], figures["gpu_hours"]) == (10, 3, None)
    stored = sum(file.stat().st_size for file in images.iterdir())
    row = figures["storage"]["with_images_bytes"] - figures["storage"]["without_images_bytes"]
    assert row == pytest.approx(stored, abs=10)


def test_a_run_is_planned_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli) -> None:
    """At the same size, the plan has the figures of the run; images that need several attempts are among them."""
    engine = ScriptedEngine(malformed={sha256(png(1)): [1], sha256(png(4)): EVERY})
    monkeypatch.setattr(EngineSpec, "start", lambda spec, log: engine.start(log))
    out = tmp_path / "out"
    run = generate(model="shapes-llava", images=write_images(tmp_path / "in", 11), out=out, shard_size=4, max_losses=1)
    assert run.summary["run"]["requests"] == len(engine.asked) == 11 + 1 + 2
    assert run.summary["run"]["prompt_tokens"] == sum(len(asked.prompt.split()) for asked in engine.asked)
    for given in (str(out), str(out / "run.json")):
        done = dialog_gen_cli("plan", "--from", given, "--json")
        assert done.code == 0, done
        figures = json.loads(done.out)
        assert (figures["images"], figures["shards"], figures["shard_size"]) == (11, 3, 4)
        assert {name: figures[name] for name in ("requests", "prompt_tokens", "output_tokens")} == {
            name: run.summary["run"][name] for name in ("requests", "prompt_tokens", "output_tokens")
        }
    files = [file for part in ("data", "rejects") for file in (out / part).iterdir()]
    storage = figures["storage"]
    assert storage["with_images_bytes"] == sum(file.stat().st_size for file in files)
    assert 0 < storage["without_images_bytes"] < storage["with_images_bytes"]
    sidecars = list((out / "shards").glob("*.json"))
    assert storage["sidecars"] == len(sidecars)
    assert storage["sidecar_bytes"] == pytest.approx(sum(file.stat().st_size for file in sidecars), abs=2)
    larger = dialog_gen.plan(from_dataset=str(out), images=11_000).figures
    assert (larger["shards"], larger["requests"]) == (2750, 14_000)
    assert "2,750 of at most 4 images" in dialog_gen_cli("plan", "--from", out, "--images", 11_000).out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"images": 10}, "needs --model, or a dataset"),
        ({"model": "llava-1.5-7b"}, "needs --images"),
        ({"images": "1.5", "model": "llava-1.5-7b"}, "--images 1.5: give a whole number"),
        ({"images": "0", "model": "llava-1.5-7b"}, "--images 0: give a whole number"),
        ({"images": 10, "model": "llava-1.5-7b", "gpu": "H1000"}, "--gpu H1000: unknown GPU; did you mean 'H100'"),
        ({"images": 10, "model": "llava-1.5-7c"}, "unknown model 'llava-1.5-7c'"),
        ({"images": 10, "model": "llava-1.5-13b", "gpu": "L4"}, "--gpu L4: the model's weights take 2. GiB"),
        ({"images": 10, "model": "blip2-flan-t5-xl", "gpu": "H100"}, "encoder-decoder.*give --rate"),
        ({"images": 10, "model": "llava-1.5-7b", "gpu": "H100", "rate": 3}, "give one of them"),
        ({"images": 10, "model": "llava-1.5-7b", "rate": 0}, "--rate 0: give the images per second"),
        ({"images": 10, "model": "llava-1.5-7b", "rate": float("inf")}, "--rate inf is too large"),
        ({"images": "1e300", "model": "llava-1.5-7b"}, "--images 1e.300 is too large: give at most 1000000000000000"),
        ({"images": "9" * 400, "model": "llava-1.5-7b"}, "--images inf is too large"),
        ({"images": 10, "model": "llava-1.5-7b", "shard_size": 10**300}, "--shard-size 1e300 is too large"),
        ({"images": 10, "model": "llava-1.5-7b", "gpus": 10**9}, "--gpus 1000000000 is too large"),
        ({"images": 10, "model": "llava-1.5-7b", "answer_tokens": 1e300}, "--answer-tokens 1e.300 is too large"),
        ({"images": 10, "model": "llava-1.5-7b", "price_output": float("inf")}, "--price-output inf is too large"),
        ({"images": 10, "model": "llava-1.5-7b", "gpu_hour_price": 2}, "needs GPU hours"),
        ({"images": 10, "model": "llava-1.5-7b", "price_input": 2}, "give both"),
        ({"images": 10, "model": "llava-1.5-7b", "kv_cache_dtype": "fp9"}, "--kv-cache-dtype fp9: .*only fp8"),
        ({"images": 10, "model": "llava-1.5-7b", "quantization": "awq"}, "--quantization awq: .*only fp8"),
        ({"images": 10, "model": "gpt-x", "price_input": 1, "price_output": 1}, "server, use --from a small run of it"),
        ({"images": 10, "model": "llava-1.5-7b", "gpus": 0}, "--gpus 0 is too small"),
        ({"from_dataset": "nowhere"}, "nowhere"),
        ({"images": 10, "model": "llava-1.5-7b", "fallback_share": 2}, "--fallback-share 2: give the part"),
        ({"images": 10, "model": "llava-1.5-7b", "images_per_sample": "all"}, "was made for one image in a prompt"),
        ({"from_dataset": "x", "images_per_sample": "all"}, "leave out --model"),
        ({"from_dataset": "x", "model": "llava-1.5-7b"}, "leave out --model"),
    ],
)
def test_wrong_settings(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        dialog_gen.plan(**given)


def test_no_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineSpec, "start", lambda spec, log: ScriptedEngine().start(log))
    out = tmp_path / "out"
    generate(model="shapes-llava", images=write_images(tmp_path / "in", 2), out=out)
    summary = unsealed((out / "run.json").read_bytes())
    for broken, said in (
        ("[]", "run.json cannot be read"),
        (json.dumps({**summary, "run": {"images": 0}}), "made no images"),
        (json.dumps({**summary, "run": {**summary["run"], "requests": None}}), "run.json cannot be read"),
        (json.dumps({**summary, "run": {"images": 2, "images_per_second": 1}}), "older dialog-gen"),
    ):
        (out / "run.json").write_text(broken)
        with pytest.raises(UsageError, match=said):
            dialog_gen.plan(from_dataset=str(out))
    (out / "run.json").unlink()
    with pytest.raises(UsageError, match="no run has finished there"):
        dialog_gen.plan(from_dataset=str(out))
    shutil.rmtree(out)


@pytest.mark.slow
def test_prompts_are_counted_as_vllm_counts_them(tmp_path: Path, dialog_gen_cli: Cli) -> None:
    """A plan of the embedded model, which loads nothing, and then the run."""
    images, out = write_images(tmp_path / "images", 12), tmp_path / "out"
    given = ("--model=shapes-llava", f"--images={images}", "--shard-size=5")
    planned = json.loads(dialog_gen_cli("plan", *given, "--json").out)
    done = dialog_gen_cli("run", *given, f"--out={out}", "--attempts=1", "--max-losses=1")
    assert done.code == 0, done
    run = unsealed((out / "run.json").read_bytes())
    assert (planned["images"], planned["shards"]) == (run["dataset"]["images"], run["dataset"]["shards"])
    assert (planned["requests"], planned["prompt_tokens"]) == (run["run"]["requests"], run["run"]["prompt_tokens"])
    again = json.loads(dialog_gen_cli("plan", "--from", out, "--json").out)
    names = ("requests", "prompt_tokens", "output_tokens")
    assert [again[name] for name in names] == [run["run"][name] for name in names]
    assert again["gpu_hours"][0] == pytest.approx(run["run"]["seconds"] / 3600, abs=0.001)
