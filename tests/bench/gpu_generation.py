"""`dialog-gen run` over bare vLLM on a GPU: images/s of both, with random weights in LLaVA-1.5-7B's released layout.

    python tests/bench/gpu_generation.py            # under 5 minutes on one H100 with vLLM installed
    python tests/bench/gpu_generation.py --tiny     # a check of this script on a CPU: its ratios mean nothing

Bare vLLM is one `AsyncLLM` that gets all images, decoded, at once. Random weights never end a text, so every answer has
the same number of tokens on both sides. Each engine has a process of its own. Rows appear as they are measured; a row
that the time does not suffice for is left out, and said so. Exits with 1 if a ratio is below 0.97 or was not measured.
"""

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NEEDED = 0.97
PROMPT = "Ask 3 fundamental questions about this image and answer each one. Format: 1. Q: ... A: ..."
ANSWER_TOKENS = 128
STEADY = "[sampling]\ntemperature = 0.7\ntop_p = 0.9\nmax_tokens = {tokens}\n\n[[turns]]\nuser = {prompt}\n"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A LLaVA: its LLaMA, and its CLIP tower."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int = 32064
    vision_layers: int = 24
    vision_hidden: int = 1024
    vision_heads: int = 16
    image_size: int = 336
    dtype: str = "float16"

    @property
    def image_tokens(self) -> int:
        """Patches of 14 pixels."""
        return (self.image_size // 14) ** 2


LLAVA_7B = Shape(name="llava-1.5-7b", layers=32, hidden=4096, heads=32, kv_heads=32, intermediate=11008)
LLAVA_HALF_B = Shape(name="llava-0.5b", layers=24, hidden=896, heads=14, kv_heads=2, intermediate=4864)
TINY = Shape(
    name="llava-tiny",
    layers=2,
    hidden=64,
    heads=2,
    kv_heads=2,
    intermediate=128,
    vocabulary=4064,
    vision_layers=3,
    vision_hidden=64,
    vision_heads=2,
    image_size=56,
    dtype="float32",
)


def write_model(shape: Shape, folder: Path) -> Path:
    """Random weights in the layout of the llava-hf releases, with a tokenizer trained on this package's source."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    write_small_files(shape, folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator, dtype = torch.Generator(device).manual_seed(0), getattr(torch, shape.dtype)

    def drawn(*size: int) -> Any:
        return (torch.randn(*size, device=device, generator=generator, dtype=dtype) * 0.02).cpu()

    def constant(value: float, size: int) -> Any:
        return torch.full((size,), value, dtype=dtype)

    parts: list[dict[str, Any]] = [{}]
    v, width, wide = parts[0], shape.vision_hidden, 4 * shape.vision_hidden
    tower = "vision_tower.vision_model."
    v[tower + "embeddings.class_embedding"] = drawn(width)
    v[tower + "embeddings.patch_embedding.weight"] = drawn(width, 3, 14, 14)
    v[tower + "embeddings.position_embedding.weight"] = drawn(shape.image_tokens + 1, width)
    layers = [f"{tower}encoder.layers.{i}." for i in range(shape.vision_layers)]
    norms = [tower + "pre_layrnorm", tower + "post_layernorm"]
    norms += [f"{layer}layer_norm{k}" for layer in layers for k in (1, 2)]
    for norm in norms:
        v[f"{norm}.weight"], v[f"{norm}.bias"] = constant(1, width), constant(0, width)
    linear = {f"{layer}self_attn.{n}_proj": (width, width) for layer in layers for n in ("q", "k", "v", "out")}
    linear |= {f"{layer}mlp.fc1": (wide, width) for layer in layers}
    linear |= {f"{layer}mlp.fc2": (width, wide) for layer in layers}
    linear |= {"multi_modal_projector.linear_1": (shape.hidden, width)}
    linear |= {"multi_modal_projector.linear_2": (shape.hidden, shape.hidden)}
    for name, size in linear.items():
        v[f"{name}.weight"], v[f"{name}.bias"] = drawn(*size), constant(0, size[0])
    head_dim = shape.hidden // shape.heads
    for index in range(shape.layers):
        if index % 16 == 0:
            parts.append({})
        part, layer = parts[-1], f"language_model.model.layers.{index}."
        for name, rows in {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}.items():
            part[f"{layer}self_attn.{name}_proj.weight"] = drawn(rows * head_dim, shape.hidden)
        part[f"{layer}self_attn.o_proj.weight"] = drawn(shape.hidden, shape.hidden)
        for name in ("gate", "up"):
            part[f"{layer}mlp.{name}_proj.weight"] = drawn(shape.intermediate, shape.hidden)
        part[f"{layer}mlp.down_proj.weight"] = drawn(shape.hidden, shape.intermediate)
        for name in ("input_layernorm", "post_attention_layernorm"):
            part[f"{layer}{name}.weight"] = constant(1, shape.hidden)
    v["language_model.model.embed_tokens.weight"] = drawn(shape.vocabulary, shape.hidden)
    parts[-1]["language_model.model.norm.weight"] = constant(1, shape.hidden)
    parts[-1]["language_model.lm_head.weight"] = drawn(shape.vocabulary, shape.hidden)
    index, total = {}, 0
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
        total += sum(tensor.numel() * tensor.element_size() for tensor in part.values())
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def write_small_files(shape: Shape, folder: Path) -> None:
    """Configuration, tokenizer, image processor and chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    import dialog_gen
    from dialog_gen.models.templates import LLAVA_CHAT_TEMPLATE

    words = shape.vocabulary - 64
    tokenizer: Any = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=min(words, 6000), special_tokens=["<unk>", "<s>", "</s>"], show_progress=False, limit_alphabet=200
    )
    tokenizer.train(sorted(map(str, Path(dialog_gen.__file__).parent.rglob("*.py"))), trainer)
    # Text that random weights write is made of all ids.
    tokenizer.add_tokens([f"filler{i}" for i in range(words - tokenizer.get_vocab_size())])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<image>", "<pad>")])
    image_id, pad_id = tokenizer.token_to_id("<image>"), tokenizer.token_to_id("<pad>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocabulary,
        "torch_dtype": shape.dtype,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 4 * shape.vision_hidden,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "image_size": shape.image_size,
        "patch_size": 14,
        "projection_dim": 768,
    }
    pixels = {"height": shape.image_size, "width": shape.image_size}
    files: dict[str, Any] = {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_token_index": image_id,
            "pad_token_id": pad_id,
            "projector_hidden_act": "gelu",
            "image_seq_length": shape.image_tokens,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
            "torch_dtype": shape.dtype,
            "vocab_size": shape.vocabulary,
            "text_config": text,
            "vision_config": vision,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "image_token": "<image>",
            "extra_special_tokens": {"image_token": "<image>"},
            "padding_side": "left",
            "processor_class": "LlavaProcessor",
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "crop_size": pixels,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": shape.image_size},
        },
        "processor_config.json": {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": 14,
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        # No id that random weights may draw ends a text.
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": pad_id, "pad_token_id": pad_id},
        "chat_template.json": {"chat_template": LLAVA_CHAT_TEMPLATE},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def write_images(folder: Path, count: int) -> Path:
    """Photograph-like JPEG files of 340 x 256 pixels."""
    folder.mkdir()
    for number in range(count):
        cells = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(cells).resize((340, 256), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06d}.jpg", "JPEG", quality=95)
    return folder


def bare(model: str, images: str, options: dict[str, Any], tokens: int) -> dict[str, float]:
    """Images/s and tokens/s of one AsyncLLM, with the arguments of the product's engine."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    from dialog_gen.engines.base import EngineOptions
    from dialog_gen.engines.vllm.engine import engine_arguments
    from dialog_gen.generation.dialogue import seed_of
    from dialog_gen.models.registry import resolve_model
    from dialog_gen.protocols.protocol import conversation

    resolved = resolve_model(model)
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(resolved, EngineOptions(**options))))
    prompt = resolved.render(conversation(PROMPT))
    files = sorted(Path(images).iterdir())
    decoded = [Image.open(file).convert("RGB") for file in files]
    seeds = [seed_of(0, hashlib.sha256(file.read_bytes()).hexdigest(), 1) for file in files]

    async def one(number: int, name: str) -> int:
        parameters = SamplingParams(
            temperature=0.7,
            top_p=0.9,
            max_tokens=tokens,
            seed=seeds[number],
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        content: Any = {"prompt": prompt, "multi_modal_data": {"image": decoded[number]}}
        content["multi_modal_uuids"] = {"image": name}
        count = 0
        async for output in engine.generate(content, parameters, name):
            count = len(output.outputs[0].token_ids)
        return count

    async def all_of_them() -> dict[str, float]:
        await asyncio.gather(*(one(number, f"warm-{number}") for number in range(min(32, len(files)))))
        began = time.perf_counter()
        counts = await asyncio.gather(*(one(number, f"image-{number}") for number in range(len(files))))
        seconds = time.perf_counter() - began
        return {"images_per_second": len(files) / seconds, "output_tokens_per_second": sum(counts) / seconds}

    try:
        return asyncio.run(all_of_them())
    finally:
        engine.shutdown()


class Stages:
    """Runs each measurement in a process of its own while there is time."""

    def __init__(self, work: Path, seconds: float, env: dict[str, str]) -> None:
        self._work, self._env = work, env
        self._began, self._seconds = time.monotonic(), seconds
        self._longest = 0.0
        self.missing: list[str] = []

    def run(self, name: str, command: list[str]) -> dict[str, float] | None:
        """The last line of the command's output, as JSON; prints a row. None if it failed, or had no time."""
        elapsed = time.monotonic() - self._began
        if elapsed + self._longest > self._seconds:
            print(f"{name:<44} not measured: {elapsed:.0f} s of {self._seconds:.0f} s are over", flush=True)
            self.missing.append(name)
            return None
        began, log = time.monotonic(), self._work / f"{name.replace(' ', '-')}.log"
        with log.open("w") as errors:
            done = subprocess.run(
                [sys.executable, *command], stdout=subprocess.PIPE, stderr=errors, text=True, env=self._env, check=False
            )
        took = time.monotonic() - began
        self._longest = max(self._longest, took)
        try:
            found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            tail = log.read_text()[-1500:]
            print(f"{name:<44} FAILED (exit code {done.returncode})\n{tail}", flush=True)
            self.missing.append(name)
            return None
        found = found.get("run", found)
        print(
            f"{name:<44} {found['images_per_second']:8.2f} images/s {found['output_tokens_per_second']:9.0f} tokens/s"
            f"   ({took:.0f} s with its start)",
            flush=True,
        )
        return found


def main() -> int:
    """Writes the models and the images, measures, and compares."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few images, on a CPU")
    parser.add_argument("--images", type=int, help="images for the 7B model; four times as many for the 0.5B one")
    parser.add_argument("--seconds", type=float, help="no measurement begins that would end later; default: 300")
    parser.add_argument("--frontends", type=int, default=4, help="processes that feed the 0.5B model's engine")
    parser.add_argument("--work", type=Path, help="folder for models and results; default: a new one in memory")
    parser.add_argument("--bare", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        model, images, options, tokens = given.bare
        print(json.dumps(bare(model, images, json.loads(options), int(tokens))))
        return 0
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"{card}, torch {torch.__version__}", flush=True)
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > (1 << 30 if given.tiny else 24 << 30)
    work = given.work or Path(tempfile.mkdtemp(prefix="gpu-generation-", dir=memory if roomy else None))
    work.mkdir(exist_ok=True)
    try:
        return measure(given, work)
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)


def measure(given: argparse.Namespace, work: Path) -> int:
    """Measures everything below `work`; returns the exit code."""
    env = dict(os.environ)
    if given.tiny:
        env |= {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    # Two busy cores may need minutes to start an engine.
    stages = Stages(work, given.seconds or (7200 if given.tiny else 300), env)
    tokens, count = (8, given.images or 48) if given.tiny else (ANSWER_TOKENS, given.images or 480)
    protocol = work / "steady.toml"
    protocol.write_text(STEADY.format(tokens=tokens, prompt=json.dumps(PROMPT)))
    images = {size: write_images(work / f"images-{size}", size) for size in {count, count * (1 if given.tiny else 4)}}
    help_text = subprocess.run(
        [sys.executable, "-m", "dialog_gen", "run", "--help"], capture_output=True, text=True, env=env, check=True
    ).stdout
    ratios: dict[str, float] = {}

    def compare(title: str, model: Path, size: int, options: dict[str, Any], flags: list[str]) -> None:
        options = {"max_model_len": 2048, **options}
        settings = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        script = [str(Path(__file__).resolve()), "--bare", str(model), str(images[size])]
        alone = stages.run(f"{title}: bare vLLM", [*script, json.dumps(options), str(tokens)])
        run = ["-m", "dialog_gen", "run", f"--model={model}", f"--images={images[size]}", "--json"]
        run += [f"--out={work / title.replace(' ', '-')}", f"--protocol={protocol}", "--attempts=1", "--max-losses=1"]
        ours = alone and stages.run(f"{title}: dialog-gen run {' '.join(flags)}", [*run, *settings, *flags])
        if alone and ours:
            ratios[title] = ours["images_per_second"] / alone["images_per_second"]
            print(f"{title:<44} {ratios[title]:8.3f} of bare vLLM", flush=True)

    shapes = (TINY, TINY) if given.tiny else (LLAVA_7B, LLAVA_HALF_B)
    began = time.monotonic()
    large = write_model(shapes[0], work / "large")
    print(f"{shapes[0].name} written in {time.monotonic() - began:.0f} s", flush=True)
    compare(f"{shapes[0].name}", large, count, {}, [])
    compare(f"{shapes[0].name} fp8 KV cache", large, count, {"kv_cache_dtype": "fp8"}, [])
    shutil.rmtree(large)
    small = write_model(shapes[1], work / "small")
    feeds = [f"--frontends={2 if given.tiny else given.frontends}"] if "--frontends" in help_text else []
    if not feeds:
        print("this dialog-gen has no --frontends: one process feeds the small model", flush=True)
    compare(f"{shapes[1].name} small model", small, max(images), {}, feeds)
    print(f"{time.monotonic() - stages._began:.0f} s", flush=True)
    below = {title: round(ratio, 3) for title, ratio in ratios.items() if ratio < NEEDED and not given.tiny}
    if below or stages.missing:
        print(f"FAILED: below {NEEDED}: {below}; not measured: {stages.missing}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
