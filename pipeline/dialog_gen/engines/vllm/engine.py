"""An engine that uses vLLM's `AsyncLLM`: requests can be added at any time, and each is answered when it is done.

`LLM.generate` renders prompts one after another and returns when the whole chunk is done, so the device is idle at the
end of each chunk. `AsyncLLM` runs the engine in another process; this process tokenises and preprocesses images.
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
# A forked engine would keep files of this process open after its end, such as the lock on OUT and the guard's pipe.
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

# Prompt tokens per engine step: enough for the images of several requests, but few enough that new requests start soon.
_STEP_TOKENS = 8192
_SHUTDOWN_S = 3


class VllmEngine:
    """One engine on the visible device."""

    name = "vllm"
    version = vllm.__version__

    def __init__(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> None:
        arguments = AsyncEngineArgs(**engine_arguments(model, options))
        with Guard() as self._guard, _let_ctrl_c_through():
            self._engine = AsyncLLM.from_engine_args(arguments)
        # vLLM's messages from this process would overwrite the progress bar. The engine process still logs.
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
        """The model's answer. Raises RefusedRequestError, or EngineDiedError if the engine process has ended."""
        token_ids = self._tokenize(self._render(request.messages))
        prompt: Any = {
            "prompt_token_ids": token_ids,
            "multi_modal_data": {"image": request.image},
            # Prefix caching identifies images by this id; without it, vLLM would compute a hash of the content.
            "multi_modal_uuids": {"image": request.image_sha256},
        }
        parameters = SamplingParams(
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            max_tokens=self._sampling.max_tokens,
            seed=request.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            # 0: only for the sampled tokens.
            logprobs=0 if self._logprobs else None,
            flat_logprobs=True,
        )
        try:
            (rendered,) = await self._engine.renderer.render_cmpl_async([prompt])
        # Such an error depends only on prompt and image. vLLM and the models' processors raise errors of any kind here.
        except Exception as error:
            raise RefusedRequestError("engine_refused", f"{type(error).__name__}: {error}") from error
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
        completion = final.outputs[0]
        flat: Any = completion.logprobs
        return Answer(
            text=completion.text,
            finish_reason=completion.finish_reason or "unknown",
            output_tokens=len(completion.token_ids),
            # vLLM does not warn if no image replaced the placeholder; then the prompt has not become longer.
            saw_image=len(final.prompt_token_ids or ()) > len(token_ids),
            tokens=[*zip((t or "" for t in flat.decoded_tokens), flat.logprobs, strict=True)] if flat else (),
        )

    async def close(self) -> None:
        """Stops the engine process."""
        self._engine.shutdown(timeout=_SHUTDOWN_S)
        self._guard.dismiss()


class _CtrlC(BaseException):
    """Replaces a KeyboardInterrupt, which vLLM would swallow."""


@contextmanager
def _let_ctrl_c_through() -> Generator[None]:
    """Makes Ctrl-C work in the block: vLLM swallows a KeyboardInterrupt while it waits for its engine process."""
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
    """Arguments for `AsyncEngineArgs` or `vllm.LLM`. Also sets the environment variables that vLLM reads."""
    cpu = bool(current_platform.is_cpu())
    dtype = options.dtype or model.dtype
    max_model_len = options.max_model_len or model.max_model_len
    arguments: dict[str, Any] = {
        "model": str(model.files),
        "dtype": "auto" if dtype == "auto" else getattr(torch, dtype),
        "max_model_len": max_model_len,
        "max_num_seqs": options.max_in_flight,
        "max_num_batched_tokens": max(_STEP_TOKENS, max_model_len or 0),
        # With the default, 999 images per prompt, memory profiling would reserve too much.
        "limit_mm_per_prompt": {"image": 1},
        # A dialogue has few requests: keeping an image's processed pixels for them is not worthwhile.
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
        # In a model this small, several threads only wait for each other, and on a busy machine they wait long.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # By default vLLM runs a CPU model in a process of its own, to bind its threads to cores. Then the scheduler
        # waits in a busy loop for each step, which occupies a core, and the start takes twice as long.
        arguments["distributed_executor_backend"] = UniProcExecutor
    return arguments
