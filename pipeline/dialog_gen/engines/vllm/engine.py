"""vLLM's asynchronous engine: requests enter as they come and leave as they finish.

`LLM.generate` renders prompts one after another and returns when the whole chunk is done, so the device idles at each
tail. `AsyncLLM` runs the engine in a process of its own; this side tokenises, preprocesses images and waits.
"""

import functools
import itertools
import logging
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# A forked engine would hold this process's files open after its end: the lock on OUT, the guard's pipe.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

import torch
import vllm
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMClientError
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from dialog_gen.engines.base import Answer, EngineDiedError, EngineOptions, RefusedRequestError, Request
from dialog_gen.engines.vllm.guard import Guard
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling

# Prompt tokens of one engine step. Images of several requests fit, and a step stays short enough to take new ones.
_STEP_TOKENS = 8192
_SHUTDOWN_S = 3


class VllmEngine:
    """One engine on the visible device."""

    name = "vllm"
    version = vllm.__version__

    def __init__(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> None:
        arguments = AsyncEngineArgs(**engine_arguments(model, options))
        with Guard() as self._guard, _ctrl_c_ends_it():
            self._engine = AsyncLLM.from_engine_args(arguments)
        # The engine's process still writes to its log; this process would write over the progress bar.
        logging.getLogger("vllm").setLevel(logging.CRITICAL)
        self._sampling, self._logprobs = sampling, options.logprobs
        self._render = model.render
        self._ids = itertools.count()
        tokenizer = self._engine.get_tokenizer()
        # The first turn's prompt is the same for every image.
        self._tokenize = functools.lru_cache(maxsize=1024)(lambda text: list(tokenizer.encode(text)))
        resolved = self._engine.model_config.dtype
        self.deterministic = resolved == torch.float32 if current_platform.is_cpu() else options.deterministic

    async def answer(self, request: Request) -> Answer:
        """The model's answer. Raises RefusedRequestError, or EngineDiedError once the engine process is gone."""
        token_ids = self._tokenize(self._render(request.messages))
        prompt: Any = {
            "prompt_token_ids": token_ids,
            "multi_modal_data": {"image": request.image},
            # Otherwise vLLM computes a content hash; prefix caching tells images apart by it.
            "multi_modal_uuids": {"image": request.image_sha256},
        }
        parameters = SamplingParams(
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=self._sampling.max_tokens,
            seed=request.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # 0: of the sampled tokens only.
            logprobs=0 if self._logprobs else None,
            flat_logprobs=True,
        )
        try:
            (rendered,) = await self._engine.renderer.render_cmpl_async([prompt])
        # Depends on prompt and image alone; what vLLM and the models' processors raise here is of any kind.
        except Exception as error:
            raise RefusedRequestError("engine_refused", f"{type(error).__name__}: {error}") from error
        final: Any = None
        try:
            # One output, the last. Leaving the loop at it would leave the generator for a later task to close.
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
        completion = final.outputs[0]
        flat: Any = completion.logprobs
        return Answer(
            text=completion.text,
            finish_reason=completion.finish_reason or "unknown",
            output_tokens=len(completion.token_ids),
            # vLLM answers without a warning where no image filled the placeholder; then the prompt did not grow.
            saw_image=len(final.prompt_token_ids or ()) > len(token_ids),
            tokens=[*zip((t or "" for t in flat.decoded_tokens), flat.logprobs, strict=True)] if flat else (),
        )

    async def close(self) -> None:
        """Stops the engine process."""
        self._engine.shutdown(timeout=_SHUTDOWN_S)
        self._guard.dismiss()


class _CtrlC(BaseException):
    """Stands for a KeyboardInterrupt, which vLLM would swallow."""


@contextmanager
def _ctrl_c_ends_it() -> Generator[None]:
    """Lets a Ctrl-C through: vLLM swallows a KeyboardInterrupt while it waits for its engine process."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _CtrlC

    signal.signal(signal.SIGINT, end)
    try:
        yield
    except _CtrlC:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, handler)


def engine_arguments(model: GeneratorModel, options: EngineOptions) -> dict[str, Any]:
    """Arguments of `AsyncEngineArgs`, and of `vllm.LLM`; sets the environment variables that vLLM reads beside them."""
    cpu = bool(current_platform.is_cpu())
    dtype = options.dtype or model.dtype
    max_model_len = options.max_model_len or model.max_model_len
    arguments: dict[str, Any] = {
        "model": str(model.files),
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype),
        "max_model_len": max_model_len,
        "max_num_seqs": options.max_in_flight,
        "max_num_batched_tokens": max(_STEP_TOKENS, max_model_len or 0),
        # The default of 999 images a prompt inflates memory profiling.
        "limit_mm_per_prompt": {"image": 1},
        # For the few requests of a dialogue it does not pay to keep an image's processed pixels.
        "mm_processor_cache_gb": 1 if options.reuse_images else 0,
        "gpu_memory_utilization": options.gpu_memory_utilization or (0.4 if cpu else 0.9),
        "tensor_parallel_size": options.tensor_parallel_size,
        "trust_remote_code": False,
        "load_format": "safetensors",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if not cpu:
        if options.deterministic:
            os.environ["VLLM_BATCH_INVARIANT"] = "1"
        return arguments
    arguments["enforce_eager"] = True
    # Seeded sampling kills the CPU engine as soon as a prompt is split ("CPU Generator does not use offset").
    arguments["enable_chunked_prefill"] = False
    if model.shipped and options.tensor_parallel_size == 1:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        # More threads than one only wait for each other in a model this small, and on a busy machine they wait long.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # By default vLLM gives a CPU model a process of its own, to bind its threads to cores. The scheduler then
        # spins until each step returns, which takes a core and twice the time to start.
        arguments["distributed_executor_backend"] = UniProcExecutor
    return arguments
