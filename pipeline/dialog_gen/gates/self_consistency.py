"""Answers that the model does not repeat: each question is asked again on its own, and the answers are compared.

This applies arXiv 2203.11171 (agreement of sampled answers) to single questions about an image: an answer that was
an accident of sampling, or that only the earlier dialogue suggested, is not repeated.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field, model_validator

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.record import stored_images
from dialog_gen.engines.base import ENGINES, IMAGES_PER_PROMPT, Engine, EngineOptions, RefusedRequestError, Request
from dialog_gen.engines.processes import children
from dialog_gen.engines.start import EngineSpec
from dialog_gen.engines.watchdog import EngineLoop
from dialog_gen.gates.base import GATES, EngineGate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import FUNCTION_WORDS, words
from dialog_gen.models.checks import check_several_images
from dialog_gen.models.context import context_for_questions
from dialog_gen.models.registry import MODELS, GeneratorModel
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, SHORT_ANSWER
from dialog_gen.protocols.parsing import MalformedAnswer, parse_answer, without_special_tokens
from dialog_gen.protocols.protocol import Sampling, conversation
from dialog_gen.sources.images import UnreadableImage, decode_image

_IN_FLIGHT = 256
_NUMBERS = {"no": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
_POLAR = {"yes", "no"}


class SelfConsistencySettings(Limits):
    """The model that is asked, and its sampling."""

    min: Limit = 0.8
    samples: int = Field(default=4, ge=1, le=64)
    """How often each question is asked again."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 is greedy, and only makes sense with one sample."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=32, ge=1)
    model: str | None = None
    """A generator's name, Hugging Face id or folder. Default: the model that generated the dialogues."""
    engine: str | None = None
    """Default: the engine of the dialogues."""
    prompt: str | None = None
    """The user's text with {question} in it. Default: the model's own form for short answers."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_samples_and_prompt(self) -> "SelfConsistencySettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples = {self.samples} at temperature = 0 would all be equal: set a temperature")
        if self.prompt is not None and "{question}" not in self.prompt:
            raise ValueError(f"prompt = {self.prompt!r} does not contain {{question}}")
        return self


@GATES.register("self_consistency")
class SelfConsistency(EngineGate[SelfConsistencySettings]):
    """Mean `agreement`, in [0, 1], of an answer with the answers to the same question when it is asked again.

    None for a row without image bytes, and if the engine refused the request. With `samples = 1` and
    `temperature = 0`, the question is asked again once, with greedy decoding.
    """

    description = "agreement with the answers to the same question asked again on its own"
    settings_class = SelfConsistencySettings
    columns = ("texts", "images", "image_sha256")
    needs_model = True
    order = 120

    def __init__(self, settings: SelfConsistencySettings, dataset_config: Mapping[str, Any]) -> None:
        super().__init__(settings, dataset_config)
        self._revision = None if settings.model else dataset_config.get("model_revision")
        self._entry = ENGINES.get(settings.engine or dataset_config["engine"], where="self_consistency: engine")
        model = self._resolve(settings.model or dataset_config["model"], download=False)
        images = IMAGES_PER_PROMPT[dataset_config.get("images_per_sample", "first")]
        self._spec = EngineSpec(
            name=self._entry.name,
            model=model,
            sampling=Sampling(temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens),
            options=EngineOptions(
                max_in_flight=_IN_FLIGHT,
                max_model_len=dataset_config.get("max_model_len"),
                context=context_for_questions(model, images),
                images_per_prompt=images,
                min_pixels=dataset_config.get("min_pixels"),
                max_pixels=dataset_config.get("max_pixels"),
                dtype=None if settings.model else dataset_config.get("dtype"),
                gpu_memory_utilization=settings.gpu_memory_utilization,
                tensor_parallel_size=settings.tensor_parallel_size,
                deterministic=bool(dataset_config.get("deterministic")),
                reuse_images=True,
            ),
        )
        self._spec.check()
        if images > 1 and model.folder is not None:
            check_several_images(model)
        self._pixels = self._spec.options.resizing(self._spec.model)
        # One event loop for all calls: vLLM's engine is bound to the loop of its first answer.
        self._loop: EngineLoop | None = None

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """The scores of each row. The engine starts at the first call. Raises EngineDiedError."""
        if self._loop is None:
            others = children()
            log = Path(tempfile.mkdtemp(prefix="dialog-gen-")) / "engine.log"
            model = self._resolve(self.settings.model or self._spec.model.name, download=True)
            engine = replace(self._spec, model=model).start(log)
            self._loop = EngineLoop(engine, self._spec.options.timeout_s, keep=others)
        return self._loop.run(self._score(self._loop.engine, rows))

    def can_ask(self, engine: EngineSpec) -> bool:
        """Whether the settings name no other model or engine, and this engine takes sampling per request."""
        own = self.settings.model is None and self._entry.name == engine.name
        return own and self._entry.samples_per_request

    async def ask(self, engine: Engine, images: tuple[Image.Image, ...], row: Row) -> Scores:
        """The scores of one row. Its questions are sent together: they begin with the same images."""
        asked = (self._pair(engine, images, row["image_sha256"], pair) for pair in row["texts"])
        return list(await asyncio.gather(*asked))

    def close(self) -> None:
        """Stops the engine."""
        if self._loop is not None:
            self._loop.close()

    def _resolve(self, name: str, *, download: bool) -> GeneratorModel:
        entry = MODELS.get(name) if name in MODELS.names() else None
        if self.settings.model is None and entry is None and "/" not in name and not Path(name).is_dir():
            raise UsageError(
                f"self_consistency: the dialogues were generated by {name!r}, a local folder. Name it in a gates "
                'file: model = "FOLDER" under [self_consistency].'
            )
        # Shipped models and local folders have no revision.
        on_hub = (entry is None and not Path(name).is_dir()) or (entry is not None and not entry.shipped)
        return self._entry.resolve(name, revision=self._revision if on_hub else None, download=download)

    async def _score(self, engine: Engine, rows: Sequence[Row]) -> list[Scores]:
        slots = asyncio.Semaphore(_IN_FLIGHT)
        # Not a task group, which would wrap the error of an engine that died.
        return list(await asyncio.gather(*(self._row(engine, row, slots) for row in rows)))

    async def _row(self, engine: Engine, row: Row, slots: asyncio.Semaphore) -> Scores:
        stored = stored_images(row)
        if not stored:
            return [None] * len(row["texts"])
        # Images take turns, so that the prefix of each is in the engine's cache while it is asked about.
        async with slots:
            try:
                images = tuple([self._pixels.fit(await asyncio.to_thread(decode_image, data)) for data in stored])
            except UnreadableImage:
                return [None] * len(row["texts"])
            return await self.ask(engine, images, row)

    async def _pair(
        self, engine: Engine, images: tuple[Image.Image, ...], image_sha256: str, pair: Mapping[str, str]
    ) -> float | None:
        special = self._spec.model.tokens.texts
        question = without_special_tokens(pair["user"], special)
        messages = conversation(self._form().replace("{question}", question))

        async def ask(sample: int) -> float | None:
            digest = hashlib.sha256(f"{image_sha256}/{question}/{sample}".encode()).digest()
            seed = int.from_bytes(digest[:8]) >> 2
            request = Request(
                messages=messages, images=images, image_sha256=image_sha256, seed=seed, sampling=self._spec.sampling
            )
            try:
                again = await engine.answer(request)
                if not again.saw_image:
                    return None
                return agreement(pair["assistant"], parse_answer(again.text, question=question, special=special))
            except MalformedAnswer:
                return 0.0
            except RefusedRequestError:
                return None

        # All requests have ended when this returns: the image is not used any more.
        agreements = await asyncio.gather(*map(ask, range(self.settings.samples)))
        known = [agreement for agreement in agreements if agreement is not None]
        return sum(known) / len(known) if len(known) == len(agreements) else None

    def _form(self) -> str:
        if self.settings.prompt is not None:
            return self.settings.prompt
        # LLaVA-1.5 was trained with this line. BLIP-2's language model would read it as part of the question.
        return "{question}" if self._spec.model.chat_template == BLIP2_CHAT_TEMPLATE else "{question}\n" + SHORT_ANSWER


def agreement(answer: str, again: str) -> float:
    """Overlap coefficient of two answers: |A & B| / min(|A|, |B|), where A and B are their sets of content words.

    0 if one answer is yes and the other is no. A short answer agrees with a sentence that contains it:
    "It is a red star." and "red" -> 1; "a red star" and "a blue star" -> 1/2; "Yes, it is." and "no" -> 0;
    "two" and "2" -> 1.
    """
    first, second = words(answer), words(again)
    if not first or not second:
        return float(first == second)
    if {first[0], second[0]} == _POLAR:
        return 0.0
    one, other = _content(first), _content(second)
    return len(one & other) / min(len(one), len(other))


def _content(answer: list[str]) -> frozenset[str]:
    content = frozenset(_NUMBERS.get(word, word) for word in answer if word not in FUNCTION_WORDS)
    return content or frozenset(answer)
