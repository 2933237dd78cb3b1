"""An engine that runs transformers' `generate` with small batches."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from dialog_gen.core.plural import count_of
from dialog_gen.engines.base import Answer, EngineDiedError, EngineOptions, RefusedRequestError, Request
from dialog_gen.models.context import own_context
from dialog_gen.models.processor import image_token_id
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.transformers_files import needed_of, read_configuration, read_processor
from dialog_gen.models.weights import tensor_shapes
from dialog_gen.protocols.protocol import Sampling

_BATCH_SIZE = 32
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
# After these errors (out of memory; a lost GPU, for which torch 2.8 and later have a class) all requests would fail.
_FATAL = (MemoryError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", MemoryError))


class TransformersEngine:
    """One model on the first device."""

    name = "transformers"
    version = transformers.__version__
    # Padding depends on the other requests in a batch, and padding may change the low bits of results.
    deterministic = False

    def __init__(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        architecture = model.architecture
        architecture.register_with_transformers()
        limits = options.pixel_limits(model).processor_kwargs() if architecture.takes_max_pixels else {}
        self._processor: Any = read_processor(model.files, **limits)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            model.files,
            config=read_configuration(model.files, model.config, tensor_shapes(model.files)),
            dtype=options.dtype or model.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        self._model: Any = loaded[0].to(self._device).eval()
        # transformers would only warn, and use random numbers for the missing weights.
        if missing := needed_of(loaded[1]["missing_keys"], loaded[0].config):
            raise ValueError(f"the weights lack {count_of(len(missing), 'tensor')}, such as {missing[0]}")
        self._sampling, self._logprobs = sampling, options.logprobs
        # A model gives no sensible answers beyond its context.
        limits = [limit for limit in (options.context_of(model), own_context(model)) if limit]
        self._max_model_len = min(limits) if limits and not model.is_encoder_decoder else None
        self._render = model.render
        self._tokens = model.tokens
        self._image_token_id = image_token_id(self._model.config, self._processor)
        # BLIP-2 generates with its language model, which has settings of its own.
        for module in self._model.modules():
            if getattr(module, "generation_config", None) is not None:
                module.generation_config = _tokens_only(module.generation_config)
        # The tokenizer's end, too, as in vLLM: fine-tuned models often have a new one, or files that name none.
        # MaMMUT's tokenizer has none.
        ends = (self._model.generation_config.eos_token_id, getattr(self._processor.tokenizer, "eos_token_id", None))
        self._stop_ids = set[int]().union(*map(_as_set, ends))
        self._queue: asyncio.Queue[tuple[Request, asyncio.Future[Answer]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._worker: asyncio.Task[None] | None = None
        self._closing = _Closing()

    async def answer(self, request: Request) -> Answer:
        """The model's answer; requests that arrive together run as one batch."""
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        if self._worker.done():
            raise EngineDiedError("the transformers engine stopped")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        await self._queue.put((request, future))
        return await future

    async def close(self) -> None:
        """Stops the running batch at its next token."""
        if self._worker is not None:
            self._worker.cancel()
        # Otherwise the thread would keep the process alive until its batch is done.
        self._closing.now = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            # Yields to the event loop once, so that other requests that are ready can join the batch.
            await asyncio.sleep(0)
            while not self._queue.empty() and len(batch) < _BATCH_SIZE:
                batch.append(self._queue.get_nowait())
            requests, futures = zip(*batch, strict=True)
            results = await loop.run_in_executor(self._thread, self._results, list(requests))
            for future, result in zip(futures, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _results(self, requests: list[Request]) -> list[Answer | Exception]:
        """An answer or an error for each request: one bad request does not make the others fail."""
        samplings = [request.sampling or self._sampling for request in requests]
        if len(set(samplings)) > 1:
            of_each = {
                sampling: iter(self._results([r for r, s in zip(requests, samplings, strict=True) if s == sampling]))
                for sampling in dict.fromkeys(samplings)
            }
            return [next(of_each[sampling]) for sampling in samplings]
        try:
            return [*self._generate(requests, samplings[0])]
        except Exception as error:  # noqa: BLE001 - models and processors raise errors of any kind
            if len(requests) > 1:
                return [result for request in requests for result in self._results([request])]
            problem = f"{type(error).__name__}: {error}"
            if isinstance(error, _FATAL):
                return [EngineDiedError(f"the transformers engine stopped: {problem}")]
            return [RefusedRequestError("engine_refused", problem)]

    @torch.inference_mode()
    def _generate(self, requests: list[Request], sampling: Sampling) -> list[Answer]:
        prompts = [self._render(r.messages, len(r.images)) for r in requests]
        inputs = self._processor(
            images=[list(r.images) for r in requests],
            text=prompts,
            add_special_tokens=self._tokens.added_to(prompts[0]),
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self._device, self._model.dtype)
        # PaliGemma's processor makes labels even where there is nothing to learn from.
        inputs.pop("labels", None)
        longest = int(inputs["attention_mask"].sum(dim=1).max())
        max_new_tokens = sampling.max_tokens
        if self._max_model_len and longest >= self._max_model_len:
            raise ValueError(f"a prompt of {longest} tokens, as many as the model's {self._max_model_len} or more")
        if self._max_model_len:
            max_new_tokens = min(max_new_tokens, self._max_model_len - longest)
        processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature > 0:
            processors.append(SeededSampling(sampling, [r.seed for r in requests]))
        output = self._model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(self._stop_ids) or None,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([self._closing]),
            # transformers needs the tokenizer to find texts that end inside a token.
            **({"stop_strings": list(sampling.stop), "tokenizer": self._processor.tokenizer} if sampling.stop else {}),
            output_logits=self._logprobs,
            return_dict_in_generate=True,
        )
        # An encoder-decoder returns only the answer; a decoder returns the prompt and the answer.
        prompt_length = 1 if self._model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        image_tokens = (inputs["input_ids"] == self._image_token_id).sum(dim=1).tolist()
        saw_image = [count >= len(r.images) for count, r in zip(image_tokens, requests, strict=True)]
        prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        answers = output.sequences[:, prompt_length:]
        log_probs = _log_probs(output.logits, answers) if self._logprobs else [()] * len(requests)
        rows = zip(answers.tolist(), log_probs, saw_image, prompt_tokens, strict=True)
        return [self._answer(*row, sampling.stop) for row in rows]

    def _answer(
        self,
        token_ids: list[int],
        log_probs: Sequence[float],
        saw_image: bool,
        prompt_tokens: int,
        stop_texts: Sequence[str],
    ) -> Answer:
        stops = [i for i, token in enumerate(token_ids) if token in self._stop_ids]
        kept = token_ids[: stops[0]] if stops else token_ids
        text: str = self._processor.tokenizer.decode(kept, skip_special_tokens=not self._tokens.mark_thoughts)
        ends = [text.index(stop) for stop in stop_texts if stop in text]
        return Answer(
            text=text[: min(ends)] if ends else text,
            finish_reason="stop" if stops or ends else "length",
            output_tokens=len(kept) + bool(stops),
            saw_image=saw_image,
            prompt_tokens=prompt_tokens,
            tokens=[
                (self._processor.tokenizer.decode([token]), log_prob)
                for token, log_prob in zip(token_ids[: len(kept) + bool(stops)], log_probs, strict=False)
            ],
        )


class SeededSampling(LogitsProcessor):
    """Temperature and nucleus sampling with one random stream per row: a row's answer depends only on its own seed.

    `generate` has one stream for the whole batch. Here, Gumbel noise is added to the log-probabilities of the kept
    tokens, so that the greedy choice that follows is a sample from them.
    """

    def __init__(self, sampling: Sampling, seeds: list[int]) -> None:
        self._sampling = sampling
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores (batch, vocabulary) in which the largest entry of each row is the sampled token."""
        log_probs = torch.log_softmax(scores.float() / self._sampling.temperature, dim=-1)
        ordered, order = log_probs.sort(dim=-1, descending=True)
        # A token is kept if the probability mass before it is less than top_p, so the first token always is.
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()
        rare = before >= self._sampling.top_p
        if self._sampling.top_k:
            rare[..., self._sampling.top_k :] = True
        dropped = rare.scatter(-1, order, rare)
        noise = torch.stack([torch.empty(log_probs.shape[-1]).exponential_(generator=g) for g in self._streams])
        gumbel = -noise.log().to(log_probs.device)
        return (log_probs + gumbel).masked_fill(dropped, -torch.inf)  # type: ignore[return-value]


class _Closing(StoppingCriteria):
    """Stops all answers at the next token after the engine is closed."""

    now = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        """Whether each row is done (batch,)."""
        return torch.full((input_ids.shape[0],), self.now, device=input_ids.device)  # type: ignore[return-value]


def _log_probs(logits: Sequence[torch.Tensor], token_ids: torch.Tensor) -> list[list[float]]:
    """Log-probabilities of tokens (batch, steps), from each step's logits (batch, vocabulary) without temperature."""
    steps = [
        of_step.float().log_softmax(dim=-1).gather(-1, token_ids[:, step, None].to(of_step.device))
        for step, of_step in enumerate(logits)
    ]
    return torch.cat(steps, dim=1).tolist()


def _tokens_only(own: Any) -> Any:
    """The model's generation settings without those of decoding, which the protocol decides: only special tokens."""
    return GenerationConfig(**{name: getattr(own, name, None) for name in _TOKEN_IDS})


def _as_set(value: int | list[int] | None) -> set[int]:
    return set() if value is None else {value} if isinstance(value, int) else set(value)
