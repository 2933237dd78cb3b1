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
from dialog_gen.engines.base import ENGINES, Engine, EngineOptions, RefusedRequestError, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.gates.base import GATES, Gate, Limit, Limits, Row, Scores
from dialog_gen.gates.words import FUNCTION_WORDS, words
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
class SelfConsistency(Gate[SelfConsistencySettings]):
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
        self._spec = EngineSpec(
            name=self._entry.name,
            model=self._resolve(settings.model or dataset_config["model"], download=False),
            sampling=Sampling(temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens),
            options=EngineOptions(
                max_in_flight=_IN_FLIGHT,
                max_model_len=dataset_config.get("max_model_len"),
                dtype=None if settings.model else dataset_config.get("dtype"),
                gpu_memory_utilization=settings.gpu_memory_utilization,
                tensor_parallel_size=settings.tensor_parallel_size,
                deterministic=bool(dataset_config.get("deterministic")),
                reuse_images=True,
            ),
        )
        self._spec.check()
        self._engine: Engine | None = None
        # One event loop for all calls: vLLM's engine is bound to the loop of its first answer.
        self._loop = asyncio.Runner()

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """The scores of each row. The engine starts at the first call. Raises EngineDiedError."""
        if self._engine is None:
            log = Path(tempfile.mkdtemp(prefix="dialog-gen-")) / "engine.log"
            model = self._resolve(self.settings.model or self._spec.model.name, download=True)
            self._engine = replace(self._spec, model=model).start(log)
        return self._loop.run(self._score(self._engine, rows))

    def close(self) -> None:
        """Stops the engine."""
        if self._engine is not None:
            self._loop.run(self._engine.close())
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
        async with asyncio.TaskGroup() as tasks:
            scored = [tasks.create_task(self._row(engine, row, slots)) for row in rows]
        return [task.result() for task in scored]

    async def _row(self, engine: Engine, row: Row, slots: asyncio.Semaphore) -> Scores:
        data = row["images"][0]["bytes"] if row["images"] else None
        if data is None:
            return [None] * len(row["texts"])
        # All questions about an image are sent together, while the image's prefix is in the engine's cache.
        async with slots:
            try:
                image = await asyncio.to_thread(decode_image, data)
            except UnreadableImage:
                return [None] * len(row["texts"])
            return list(
                await asyncio.gather(*(self._pair(engine, image, row["image_sha256"], pair) for pair in row["texts"]))
            )

    async def _pair(
        self, engine: Engine, image: Image.Image, image_sha256: str, pair: Mapping[str, str]
    ) -> float | None:
        question = without_special_tokens(pair["user"])
        messages = conversation(self._form().replace("{question}", question))

        async def ask(sample: int) -> float:
            digest = hashlib.sha256(f"{image_sha256}/{question}/{sample}".encode()).digest()
            seed = int.from_bytes(digest[:8]) >> 2
            again = await engine.answer(Request(messages=messages, image=image, image_sha256=image_sha256, seed=seed))
            try:
                return agreement(pair["assistant"], parse_answer(again.text, question=question))
            except MalformedAnswer:
                return 0.0

        try:
            agreements = await asyncio.gather(*map(ask, range(self.settings.samples)))
        except RefusedRequestError:
            return None
        return sum(agreements) / len(agreements)

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
