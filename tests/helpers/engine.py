"""An engine without a model."""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dialog_gen.engines.base import Answer, EngineDiedError, EngineOptions, RefusedRequestError, Request
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.templates import LLAVA_CHAT_TEMPLATE, render_chat

NONSENSE = "..."  # malformed under every protocol
EVERY = range(1, 1000)  # request about an image


class Asked(NamedTuple):
    """A request without its image, rendered."""

    prompt: str
    image_sha256: str
    seed: int


@dataclass
class ScriptedEngine:
    """Answers as a function of (prompt, image_sha256, seed), but for what it is told to do otherwise."""

    # image_sha256 -> numbers (from 1) of the requests about that image
    malformed: Mapping[str, Collection[int]] = field(default_factory=dict)
    """Answered with nonsense."""
    blind: Mapping[str, Collection[int]] = field(default_factory=dict)
    """Answered without a look at the image."""
    refused: Mapping[str, Collection[int]] = field(default_factory=dict)
    say: Callable[[Request], str | None] = lambda request: None
    """Other words for a request."""
    chat_template: str = LLAVA_CHAT_TEMPLATE
    """By which it renders conversations."""
    dies_after: int | None = None
    """Answers given before it dies."""
    max_delay_s: float = 0.0
    """Each answer waits for a random time up to this: they end in another order than they began."""
    name: str = "scripted"
    version: str = "1"
    deterministic: bool = True

    asked: list[Asked] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Of the images that were shown."""
    answers: int = 0
    most_at_once: int = 0
    starts: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        self._delays = random.Random(0)
        self._asked_about = Counter[str]()
        self._now = 0

    def start(self, log: Path) -> "ScriptedEngine":
        """As `EngineSpec.start`."""
        assert log.read_bytes() == b""
        self.starts += 1
        return self

    async def answer(self, request: Request) -> Answer:
        """See `Engine`."""
        assert not self.closed
        asked = Asked(self._rendered(request), request.image_sha256, request.seed)
        self.asked.append(asked)
        self.sizes += [image.size for image in request.images]
        sha256 = request.image_sha256
        self._asked_about[sha256] += 1
        number = self._asked_about[sha256]
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self._delays.random() * self.max_delay_s)
        finally:
            self._now -= 1
        if self.dies_after is not None and self.answers >= self.dies_after:
            raise EngineDiedError("the scripted engine died")
        if number in self.refused.get(sha256, ()):
            raise RefusedRequestError("engine_refused", "the scripted engine will not")
        self.answers += 1
        text = NONSENSE if number in self.malformed.get(sha256, ()) else self.say(request) or answer_to(asked)
        return Answer(
            text=text,
            finish_reason="stop",
            output_tokens=len(text.split()),
            saw_image=number not in self.blind.get(sha256, ()),
            prompt_tokens=len(asked.prompt.split()),
        )

    def _rendered(self, request: Request) -> str:
        return render_chat(self.chat_template, request.messages, images=len(request.images))

    async def close(self) -> None:
        """See `Engine`."""
        self.closed += 1


class Starts(NamedTuple):
    """An engine's specification that starts whatever a test wants."""

    start: Callable[[Path], ScriptedEngine]
    model: GeneratorModel
    options: EngineOptions


def answer_to(request: Asked) -> str:
    """The scripted engine's own words: three questions with answers where the prompt wants a list."""
    digest = hashlib.sha256(f"{request.prompt}/{request.image_sha256}/{request.seed}".encode()).hexdigest()
    if "1. Q:" not in request.prompt:
        return f"Something like {digest[:12]}."
    return "\n".join(f"{i}. Q: What is at {digest[i]}{i}? A: It is {digest[8 * i : 8 * i + 8]}." for i in (1, 2, 3))
