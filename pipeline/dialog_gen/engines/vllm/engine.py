"""An engine that uses vLLM's `AsyncLLM`: requests can be added at any time, and each is answered when it is done.

`LLM.generate` renders prompts one after another and returns when the whole chunk is done, so the device is idle at the
end of each chunk. `AsyncLLM` runs the engine in another process; this process tokenises and preprocesses images.
"""

import asyncio
import functools
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# A forked engine would keep files of this process open after its end, such as the lock on OUT and the guard's pipe.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

import torch
import vllm
from pydantic import ValidationError
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config import StructuredOutputsConfig, VllmConfig
from vllm.config.cache import CacheDType
from vllm.exceptions import VLLMClientError
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.platforms import CpuArchEnum, current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.plain_problems import plain_problem
from dialog_gen.engines.base import (
    Answer,
    CoreAddress,
    EngineDiedError,
    EngineOptions,
    RefusedRequestError,
    Request,
)
from dialog_gen.engines.load import EngineLoad, StageClock
from dialog_gen.engines.vllm.core import VllmCore, connect, when_core_ends
from dialog_gen.engines.vllm.guard import Guard
from dialog_gen.engines.vllm.statistics import REPORTS_STEPS, StepStatistics
from dialog_gen.models.quantized import method_of, unreadable
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling

# Prompt tokens per engine step: enough for the images of several requests, but few enough that new requests start soon.
_STEP_TOKENS = 8192
_SMALL_BYTES = 64 << 20
"""Weights of fewer bytes, such as those of the models that ship with this package, are a small model's."""
_SHUTDOWN_S = 3
# vLLM ends a request without an answer if its core does not have the pixels that this process believes it has cached;
# it sends them with the next request (MultiModalCacheMissError). Several requests of one image may have to learn that.
_SENDINGS = 4
# These quantise ordinary weights while they are loaded; all other names of vLLM need a checkpoint made for them.
_QUANTIZATIONS = ("fp8", "fp8_per_tensor", "fp8_per_channel", "fp8_per_block", "mxfp8", "bitsandbytes")


class VllmEngine:
    """One engine on the visible devices, or a client of a core that other processes use, too."""

    name = "vllm"
    version = vllm.__version__

    def __init__(
        self, model: GeneratorModel, sampling: Sampling, options: EngineOptions, address: CoreAddress | None = None
    ) -> None:
        arguments = engine_arguments(model, options) | REPORTS_STEPS
        self._guard: Guard | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        if address is None:
            with Guard() as self._guard:
                self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        else:
            self._engine = connect(arguments, address)
            when_core_ends(address, self._core_ended)
        # vLLM's messages from this process would overwrite the progress bar. The engine process still logs.
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        self._sampling, self._logprobs = sampling, options.logprobs
        self._render, self._tokens = model.render, model.tokens
        self._ids = itertools.count()
        self._rendering, self._waiting = StageClock(), StageClock()
        self._statistics = StepStatistics(self._engine, self._waiting)
        self.gpus = 0 if current_platform.is_cpu() else options.tensor_parallel_size
        tokenizer = self._engine.get_tokenizer()
        self._tokenize = tokenizes(tokenizer, model)
        resolved = self._engine.model_config.dtype
        self.deterministic = resolved == torch.float32 if current_platform.is_cpu() else options.deterministic

    async def answer(self, request: Request) -> Answer:
        """The model's answer. Raises RefusedRequestError, or EngineDiedError if the engine process has ended."""
        self._loop = asyncio.get_running_loop()
        for _ in range(_SENDINGS):
            with self._rendering:
                token_ids, rendered = await self._rendered(request)
            with self._waiting:
                final = await self._generated(rendered, request.sampling or self._sampling, request)
            completion = final.outputs[0]
            if completion.finish_reason != "error":
                break
        else:
            raise RefusedRequestError("engine_error", "vLLM ended the request with an error, and no answer")
        flat: Any = completion.logprobs
        return Answer(
            text=completion.text,
            finish_reason=completion.finish_reason or "unknown",
            output_tokens=len(completion.token_ids),
            # vLLM does not warn if no image replaced the placeholder; then the prompt has not become longer.
            saw_image=len(final.prompt_token_ids or ()) - len(token_ids) >= len(request.images),
            prompt_tokens=len(final.prompt_token_ids or ()),
            tokens=[*zip((t or "" for t in flat.decoded_tokens), flat.logprobs, strict=True)] if flat else (),
        )

    @property
    def kv_cache_tokens(self) -> int:
        """The number of tokens for which the KV cache has room."""
        cache = self._engine.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) * cache.block_size

    def load(self) -> EngineLoad:
        """The work since the engine started; of a shared core, the steps that this client was told of."""
        return replace(self._statistics.load, render_s=self._rendering.busy_s, waiting_s=self._waiting.work_s)

    async def close(self) -> None:
        """Stops the engine process, or leaves the core."""
        self._engine.shutdown(timeout=_SHUTDOWN_S)
        if self._guard is not None:
            self._guard.dismiss()

    async def _rendered(self, request: Request) -> tuple[list[int], Any]:
        """The prompt's tokens before the image's take their places, and what vLLM's core wants."""
        token_ids = self._tokenize(self._render(request.messages, len(request.images)))
        prompt: Any = {"prompt_token_ids": token_ids, **image_inputs(request)}
        try:
            (rendered,) = await self._engine.renderer.render_cmpl_async([prompt])
        # Such an error depends only on prompt and image. vLLM and the models' processors raise errors of any kind here.
        except Exception as error:
            raise RefusedRequestError("engine_refused", f"{type(error).__name__}: {error}") from error
        return token_ids, rendered

    async def _generated(self, rendered: Any, sampling: Sampling, request: Request) -> Any:
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            stop=list(sampling.stop),
            # Without its marks, what the model thinks could not be told from its answer.
            skip_special_tokens=not self._tokens.mark_thoughts,
            max_tokens=sampling.max_tokens,
            seed=request.seed,
            structured_outputs=_structured(request.schema),
            output_kind=RequestOutputKind.FINAL_ONLY,
            # 0: only for the sampled tokens.
            logprobs=0 if self._logprobs else None,
            flat_logprobs=True,
        )
        final: Any = None
        try:
            # There is only one output. Without a break, the generator is exhausted and needs no later closing.
            async for output in self._engine.generate(rendered, parameters, str(next(self._ids))):
                final = output
        except EngineDeadError as error:
            raise EngineDiedError(str(error) or "the vLLM engine process died") from error
        except EngineGenerateError as error:
            raise RefusedRequestError("engine_error", str(error.__cause__ or error)) from error
        except (VLLMClientError, ValueError, TypeError) as error:
            raise RefusedRequestError("engine_refused", f"{type(error).__name__}: {error}") from error
        if final is None:
            raise EngineDiedError("vLLM ended a request without an answer")
        return final

    def _core_ended(self) -> None:
        """Ends all requests. Another process started the core, so vLLM's client does not notice."""
        self._engine.engine_core.resources.engine_dead = True  # type: ignore[attr-defined]
        if self._loop is not None and not self._loop.is_closed():
            with suppress(RuntimeError):  # it is being closed
                self._loop.call_soon_threadsafe(self._engine.output_processor.propagate_error, EngineDeadError())


def _structured(schema: Mapping[str, Any] | None) -> StructuredOutputsParams | None:
    return None if schema is None else StructuredOutputsParams(json=dict(schema))


def image_inputs(request: Request) -> dict[str, Any]:
    """The images of a request as a part of vLLM's prompt.

    Prefix caching identifies images by their uuids; without those, vLLM would compute a hash of the content.
    """
    uuids = [request.image_sha256]
    if len(request.images) > 1:
        uuids = [f"{request.image_sha256}/{number}" for number in range(len(request.images))]
    return {"multi_modal_data": {"image": list(request.images)}, "multi_modal_uuids": {"image": uuids}}


def tokenizes(tokenizer: Any, model: GeneratorModel) -> Callable[[str], list[int]]:
    """Makes token ids of a rendered prompt. The first turn's prompt is the same for every image."""

    @functools.lru_cache(maxsize=1024)
    def tokenize(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=model.tokens.added_to(text)))

    return tokenize


def start_core(model: GeneratorModel, options: EngineOptions, clients: int) -> VllmCore:
    """A core on the visible devices, with addresses for a number of clients."""
    return VllmCore(engine_arguments(model, options) | REPORTS_STEPS, clients)


def engine_arguments(model: GeneratorModel, options: EngineOptions) -> dict[str, Any]:
    """Arguments for `AsyncEngineArgs` or `vllm.LLM`. Also sets the environment variables that vLLM reads."""
    cpu = bool(current_platform.is_cpu())
    dtype = options.dtype or model.dtype
    max_model_len = options.context_of(model)
    arguments: dict[str, Any] = {
        "model": str(model.files),
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype),
        "max_model_len": max_model_len,
        "max_num_seqs": options.max_num_seqs or options.max_in_flight,
        "max_num_batched_tokens": options.max_num_batched_tokens or max(_STEP_TOKENS, max_model_len or 0),
        # With the default, 999 images and videos per prompt, memory profiling would reserve too much and take long.
        "limit_mm_per_prompt": {"image": options.images_per_prompt, "video": 0, "audio": 0},
        # A dialogue has few requests: keeping an image's processed pixels for them is not worthwhile.
        "mm_processor_cache_gb": 1 if options.reuse_images else 0,
        "gpu_memory_utilization": options.gpu_memory_utilization or (0.4 if cpu else 0.9),
        "tensor_parallel_size": options.tensor_parallel_size,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if options.structured:
        # Where white space of any length is allowed, some models write nothing else.
        arguments["structured_outputs_config"] = StructuredOutputsConfig(
            backend="xgrammar", disable_any_whitespace=True
        )
    limits = options.pixel_limits(model)
    if model.architecture.takes_max_pixels and (kwargs := limits.processor_kwargs()):
        # vLLM reserves memory for the largest image that the processor takes, too.
        arguments["mm_processor_kwargs"] = kwargs
    arguments |= {
        name: value for name in ("kv_cache_dtype", "quantization") if (value := getattr(options, name)) is not None
    }
    if not cpu:
        if options.deterministic:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        return arguments
    arguments["enforce_eager"] = True
    # Seeded sampling kills the CPU engine as soon as a prompt is split ("CPU Generator does not use offset").
    arguments["enable_chunked_prefill"] = False
    if _is_small(model.files) and options.tensor_parallel_size == 1:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        # In a model this small, several threads only wait for each other, and on a busy machine they wait long.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # By default vLLM runs a CPU model in a process of its own, to bind its threads to cores. Then the scheduler
        # waits in a busy loop for each step, which occupies a core, and the start takes twice as long.
        arguments["distributed_executor_backend"] = UniProcExecutor
    return arguments


def _is_small(folder: Path) -> bool:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) < _SMALL_BYTES


def kv_cache_dtypes() -> list[str]:
    """The names that `--kv-cache-dtype` takes on this device."""
    if not current_platform.is_cpu():
        return list(get_args(CacheDType))
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    return list(CPUAttentionBackend.supported_kv_cache_dtypes)


def has_fp8_cache() -> bool:
    """Whether vLLM's attention on this device reads a KV cache in fp8; on x86 it finds out while the engine starts."""
    is_x86 = current_platform.is_cpu() and current_platform.get_cpu_architecture() == CpuArchEnum.X86
    return not is_x86 or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def quantizations() -> list[str]:
    """The names that `--quantization` takes on this device; none on a CPU, where vLLM dies with them."""
    if current_platform.is_cpu():
        return []
    supported = current_platform.supported_quantization or QUANTIZATION_METHODS
    return [name for name in _QUANTIZATIONS if name in QUANTIZATION_METHODS and name in supported]


def check_types(model: GeneratorModel, options: EngineOptions) -> None:
    """Raises UsageError if vLLM does not know `kv_cache_dtype` or `quantization`, or not on this device or model."""
    if (name := options.kv_cache_dtype) is not None and name not in (known := kv_cache_dtypes()):
        raise UsageError(f"--kv-cache-dtype {name}: vLLM has no such type here; {did_you_mean(name, known)}.")
    if name is not None and name.startswith("fp8") and not has_fp8_cache():
        raise UsageError(
            f"--kv-cache-dtype {name}: vLLM needs a processor with AVX-512 for it, which this one lacks; leave it out."
        )
    if (name := options.quantization) is None:
        return
    if not quantizations():
        raise UsageError(f"--quantization {name}: vLLM's build for CPUs does not quantise weights; leave it out.")
    if name not in (known := quantizations()):
        raise UsageError(
            f"--quantization {name}: vLLM cannot quantise ordinary weights so here; {did_you_mean(name, known)}."
        )
    if method := method_of(model.config):
        raise UsageError(f"--quantization {name}: the weights of {model.name} are quantised already ({method}).")
    if (options.dtype or model.dtype) == "float32":
        raise UsageError(f"--quantization {name}: vLLM cannot use it with float32; add --dtype bfloat16.")


def check_quantized(model: GeneratorModel, options: EngineOptions, method: str) -> None:
    """Raises UsageError if vLLM cannot read the model's quantised weights on this device; `method` names their format.

    vLLM reads its settings as at its start, which takes seconds.
    """
    arguments = AsyncEngineArgs(**engine_arguments(model, options))
    known = method in QUANTIZATION_METHODS
    try:
        found = VllmConfig.get_quantization_config(arguments.create_model_config(), arguments.create_load_config())
    except ValidationError as error:
        raise unreadable(model.name, method, "vLLM", plain_problem(error.errors()[0]), known=known) from error
    # Each format has checks of its own.
    except Exception as error:
        raise unreadable(model.name, method, "vLLM", error, known=known) from error
    packed = hasattr(found, "pack_factor") or getattr(found, "quant_format", "") == "pack-quantized"
    if packed and current_platform.is_cpu() and not _has_packed_kernel():
        problem = "its build for this processor has no kernel for weights of 4 bits, which needs AVX-512"
        raise unreadable(model.name, method, "vLLM", problem, known=known)


def _has_packed_kernel() -> bool:
    """Whether vLLM's build for this processor multiplies packed matrices; it finds out at the first answer."""
    current_platform.import_kernels()
    return hasattr(torch.ops._C, "cpu_gemm_wna16")  # noqa: SLF001
