"""Rows per second of `dialog-gen run` over those of other ways to do the same job: `make bench`.

All ask the embedded LLaVA the same question about each image. Rounds alternate, and starting an engine is not counted.
Figures are printed; see docs/performance.md.
"""

import hashlib
import importlib.util
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.memory import run_script
from helpers.speed import plan_of, timed_run, write_tars

from dialog_gen.generation.dialogue import seed_of
from dialog_gen.generation.plan import RunPlan
from dialog_gen.protocols.protocol import conversation
from dialog_gen.sources.base import SourceImage
from dialog_gen.sources.images import decode_image

pytestmark = [pytest.mark.bench, pytest.mark.slow]

IMAGES = 2048
ROUNDS = 5
CHUNK = 256
TRANSFORMERS_IMAGES, TRANSFORMERS_BATCH = 256, 16
RAY_SIZES = (256, 2304)


def sources_of(plan: RunPlan) -> Iterator[SourceImage]:
    return (image for shard in plan.shards() for image in shard.read())


def alternated(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Prints the figures of all rounds; the median ratio of the first contender's to each other's."""
    names = list(contenders)
    figures = [{name: contender() for name, contender in contenders.items()} for _ in range(rounds)]
    print(f"\nrows/s, {rounds} rounds")
    for name in names:
        print(f"  {name:<34}", *(f"{figure[name]:7.1f}" for figure in figures))
    ratios = {name: median(figure[names[0]] / figure[name] for figure in figures) for name in names[1:]}
    for name, ratio in ratios.items():
        print(f"  {names[0]} over {name}: {ratio:.2f}")
    return ratios


class BareVllm:
    """`vllm.LLM` with the arguments and seeds of a run."""

    def __init__(self, plan: RunPlan) -> None:
        from vllm import LLM

        from dialog_gen.engines.vllm.engine import engine_arguments

        model = plan.engine.model
        self._llm = LLM(**engine_arguments(model, plan.engine.options))
        self._prompt = model.render(conversation(plan.generator.protocol.turns[0].user))
        self._sampling = plan.engine.sampling

    def generate(self, images: list[Any], sha256s: list[str]) -> list[Any]:
        """The outputs for decoded images."""
        from vllm import SamplingParams

        sampling = self._sampling
        # The seeds that the run uses: both sides generate the same tokens.
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=seed_of(0, sha256, 1),
            )
            for sha256 in sha256s
        ]
        prompts: Any = [{"prompt": self._prompt, "multi_modal_data": {"image": image}} for image in images]
        return self._llm.generate(prompts, parameters, use_tqdm=False)


def decode_generate_write(engine: BareVllm, plan: RunPlan, out: Path) -> int:
    """The loop that everybody writes first; returns the number of tokens."""
    writer, tokens = None, 0
    for chunk in _batched(plan):
        images = [decode_image(source.data) for source in chunk]
        outputs = engine.generate(images, [hashlib.sha256(source.data).hexdigest() for source in chunk])
        tokens += sum(len(output.outputs[0].token_ids) for output in outputs)
        table = pa.table(
            {
                "image_id": [source.image_id for source in chunk],
                "image": [source.data for source in chunk],
                "text": [output.outputs[0].text for output in outputs],
            }
        )
        writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()
    return tokens


def _batched(plan: RunPlan) -> Iterator[list[SourceImage]]:
    sources = sources_of(plan)
    while chunk := list(itertools.islice(sources, CHUNK)):
        yield chunk


def test_against_bare_vllm_and_a_loop(tmp_path: Path) -> None:
    """`LLM.generate` gets all images at once, already decoded, and writes nothing."""
    plan = plan_of(write_tars(tmp_path / "images", IMAGES), tmp_path / "out")
    bare = BareVllm(plan)
    sources = list(sources_of(plan))
    images = [decode_image(source.data) for source in sources]
    sha256s = [hashlib.sha256(source.data).hexdigest() for source in sources]
    numbers = itertools.count()
    tokens = set[int]()

    def ours() -> float:
        result = timed_run(plan, tmp_path / f"out-{next(numbers)}")
        assert result.counts["accepted"] + result.counts["rejected"] == IMAGES
        tokens.add(result.output_tokens)
        return IMAGES / result.seconds

    def generate() -> float:
        began = time.perf_counter()
        outputs = bare.generate(images, sha256s)
        took_s = time.perf_counter() - began
        tokens.add(sum(len(output.outputs[0].token_ids) for output in outputs))
        return IMAGES / took_s

    def loop() -> float:
        began = time.perf_counter()
        tokens.add(decode_generate_write(bare, plan, tmp_path / f"loop-{next(numbers)}.parquet"))
        return IMAGES / (time.perf_counter() - began)

    contenders = {"run": ours, "LLM.generate, decoded images": generate, "decode-generate-write loop": loop}
    # All do their first imports before the clock runs.
    bare.generate(images[:64], sha256s[:64])
    timed_run(plan_of(write_tars(tmp_path / "few", 64), tmp_path / "warm"), tmp_path / "warm")
    ratios = alternated(contenders, ROUNDS)
    assert len(tokens) == 1  # the same work: equal seeds gave equal tokens
    assert ratios["LLM.generate, decoded images"] >= 1.0
    assert ratios["decode-generate-write loop"] >= 1.3


def test_against_transformers(tmp_path: Path) -> None:
    """`generate` of transformers with batches of 16 images, decoded and preprocessed beforehand."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    plan = plan_of(write_tars(tmp_path / "images", IMAGES), tmp_path / "out")
    model, sampling = plan.engine.model, plan.engine.sampling
    processor: Any = AutoProcessor.from_pretrained(model.files)
    network: Any = AutoModelForImageTextToText.from_pretrained(model.files, dtype=torch.float32).eval()
    prompt = model.render(conversation(plan.generator.protocol.turns[0].user))
    images = [decode_image(source.data) for source in itertools.islice(sources_of(plan), TRANSFORMERS_IMAGES)]
    batches = [
        processor(
            images=images[start : start + TRANSFORMERS_BATCH],
            text=[prompt] * TRANSFORMERS_BATCH,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        for start in range(0, TRANSFORMERS_IMAGES, TRANSFORMERS_BATCH)
    ]
    numbers = itertools.count()

    def ours() -> float:
        result = timed_run(plan, tmp_path / f"out-{next(numbers)}")
        return IMAGES / result.seconds

    @torch.inference_mode()
    def generate() -> float:
        began = time.perf_counter()
        for batch in batches:
            network.generate(
                **batch,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_new_tokens=sampling.max_tokens,
            )
        return TRANSFORMERS_IMAGES / (time.perf_counter() - began)

    name = f"transformers, batches of {TRANSFORMERS_BATCH}"
    assert alternated({"run": ours, name: generate}, ROUNDS)[name] >= 5


_RAY = '''
import json, os, sys, time
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
import ray
from ray.data.llm import build_processor, vLLMEngineProcessorConfig
from dialog_gen.models.registry import resolve_model
from dialog_gen.protocols.protocol import load_protocol

def moved():
    """Ray 2.60 imports a module from where vLLM 0.29 had it."""
    import sys
    from importlib.abc import Loader, MetaPathFinder
    from importlib.machinery import ModuleSpec

    class Finder(MetaPathFinder, Loader):
        def find_spec(self, name, path, target=None):
            return ModuleSpec(name, self) if name == "vllm.entrypoints.chat_utils" else None

        def create_module(self, spec):
            import vllm.renderers.chat_utils as found

            return found

        def exec_module(self, module):
            pass

    sys.meta_path.append(Finder())

images, out, *sizes = sys.argv[1:]
ray.init(
    num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
    runtime_env={"worker_process_setup_hook": moved},
)
protocol, model = load_protocol("llava-3qa"), resolve_model("shapes-llava")
user, sampling = protocol.turns[0].user, protocol.sampling
config = vLLMEngineProcessorConfig(
    model_source=str(model.files),
    engine_kwargs={
        "dtype": "float32", "enforce_eager": True, "enable_chunked_prefill": False, "max_num_seqs": 256,
        "max_num_batched_tokens": 8192, "max_model_len": model.max_model_len, "gpu_memory_utilization": 0.4,
        "limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0,
    },
    concurrency=1, batch_size=64, accelerator_type=None, log_engine_metrics=False,
    placement_group_config={"bundles": [{"CPU": 1}]},
    chat_template_stage={"enabled": True, "chat_template": model.chat_template},
    prepare_multimodal_stage={"enabled": True}, detokenize_stage={"enabled": False},
)

def ask(row):
    from PIL import Image

    image = {"type": "image_pil", "image_pil": Image.fromarray(row["png"])}
    return {
        "messages": [{"role": "user", "content": [image, {"type": "text", "text": user}]}],
        "sampling_params": {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens, "seed": 1,
        },
    }

def row(answer):
    return {"image_id": answer["__key__"], "image": answer["png"], "text": answer["generated_text"]}

processor = build_processor(config, preprocess=ask, postprocess=row)
took = []
for size in map(int, sizes):
    began = time.perf_counter()
    processor(ray.data.read_webdataset(images).limit(size)).write_parquet(f"{out}/{size}")
    took.append(time.perf_counter() - began)
print("TOOK", json.dumps(took))
'''


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")
def test_against_ray_data(tmp_path: Path) -> None:
    """Ray Data's own vLLM pipeline. Its time at one size less that at a smaller one: the start is in both."""
    images = write_tars(tmp_path / "images", max(RAY_SIZES))
    plan = plan_of(images, tmp_path / "out")
    numbers = itertools.count()

    def ours() -> float:
        result = timed_run(plan, tmp_path / f"out-{next(numbers)}")
        return max(RAY_SIZES) / result.seconds

    def ray_data() -> float:
        done = run_script(_RAY, str(images), str(tmp_path / f"ray-{next(numbers)}"), *map(str, RAY_SIZES))
        assert done.returncode == 0, done.stderr[-2000:]
        first, second = json.loads(done.stdout.rpartition("TOOK ")[2])
        return (RAY_SIZES[1] - RAY_SIZES[0]) / (second - first)

    name = "Ray Data's vLLM pipeline"
    assert alternated({"run": ours, name: ray_data}, ROUNDS)[name] >= 2
