"""Generates one dialogue about an image or several, turn by turn. A malformed answer starts a new attempt.

After the last attempt of a protocol that has a fallback, the fallback makes its own attempts.

A dialogue is rejected for one of these reasons: those of `dialog_gen.protocols.parsing`, the engine's `engine_refused`
and `engine_error`, and

image_not_seen  the prompt had fewer image tokens than images when it ran, so the answer is not about all of them
"""

import asyncio
import hashlib
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from PIL import Image

from dialog_gen.engines.base import Answer, Engine, RefusedRequestError, Request
from dialog_gen.generation.logprobs import answer_logprobs
from dialog_gen.protocols.parsing import (
    REASONS,
    MalformedAnswer,
    QAPair,
    parse_answer,
    parse_qa_list,
    statement_of,
    without_special_tokens,
    without_thinking,
)
from dialog_gen.protocols.protocol import Conversation, Protocol, Sampling, Turn
from dialog_gen.protocols.schema import pairs_schema

T = TypeVar("T")

DEFAULT_ATTEMPTS = 3
IMAGE_NOT_SEEN = "image_not_seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """The outcome for one image. `reason` is None for an accepted dialogue; most fields describe the last attempt."""

    pairs: tuple[QAPair, ...] = ()
    reason: str | None = None
    detail: str | None = None
    raw: tuple[str, ...] = ()
    """The answers as the model wrote them, one per turn."""
    finish_reasons: tuple[str, ...] = ()
    answer_logprobs: tuple[float | None, ...] = ()
    """For each pair, the mean log-probability of its answer's tokens."""
    statements: tuple[str | None, ...] | None = None
    """For each pair, a sentence that says the same, or None if the model gave none. None without a statement turn."""
    attempts: int
    seed: int
    output_tokens: int
    """Sum over all attempts."""
    prompt_tokens: int = 0
    """Sum over all requests; 0 if the engine does not say."""
    requests: int = 0
    """The number of requests that the engine answered, in all attempts."""
    fallbacks: int = 0
    """The number of the protocol that made the last attempt: 0 for the run's own, 1 for its fallback, and so on."""

    def followed_by(self, other: "Dialogue") -> "Dialogue":
        """The outcome after a fallback, which has gone on after this one."""
        return replace(
            other,
            output_tokens=self.output_tokens + other.output_tokens,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            requests=self.requests + other.requests,
            fallbacks=self.fallbacks + 1,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueGenerator:
    """The settings with which a run generates every dialogue. Plain data, so another process can receive it."""

    protocol: Protocol
    chat_template: str | None
    """None if a server renders the conversations."""
    sampling: Sampling
    run_seed: int
    attempts: int = DEFAULT_ATTEMPTS
    fallback: "DialogueGenerator | None" = None
    """Makes further attempts if all answers were malformed."""
    structured: bool = False
    """Whether lists of pairs are asked for with their JSON schema."""
    special_tokens: tuple[str, ...] = ()
    """The special tokens of the model's tokenizer, which are no part of any text; empty if only a server knows them."""

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of everything that a prompt, or the parsing of its answer, depends on; in hexadecimal digits."""
        return hashlib.sha256(f"{self.chat_template or ''}\n{self.protocol.sha256}".encode()).hexdigest()

    @property
    def chain(self) -> "tuple[DialogueGenerator, ...]":
        """The generator itself and its fallbacks, in order."""
        return (self, *(self.fallback.chain if self.fallback else ()))

    @property
    def tries(self) -> int:
        """The number of attempts without those of the fallback. Greedy decoding would give the same answer again."""
        return self.attempts if self.sampling.temperature > 0 else 1

    @property
    def requests(self) -> int:
        """The number of requests of a complete attempt. They have the attempt's seed and those that follow it."""
        return len(self.protocol.turns) + (self.protocol.pairs if self.protocol.statement else 0)

    @property
    def has_statements(self) -> bool:
        """Whether rows have a column of statements."""
        return any(generator.protocol.statement is not None for generator in self.chain)

    @property
    def at_once(self) -> int:
        """The most requests that a dialogue has in the engine at a time."""
        protocols = [generator.protocol for generator in self.chain]
        groups = [len(group) for protocol in protocols for group in protocol.groups]
        return max(*groups, *(protocol.pairs for protocol in protocols if protocol.statement), 1)

    async def generate(
        self, engine: Engine, images: tuple[Image.Image, ...], image_sha256: str, encoded: tuple[bytes, ...] = ()
    ) -> Dialogue:
        """Generates the dialogue about `images`. It depends only on their bytes, these settings and the model.

        `image_sha256` is their hash (`sha256_images`); `encoded` are the images as stored, for engines that send them.
        The engine was started with this `sampling`.

        A malformed answer starts the dialogue again with a new seed, up to `tries` times; then the fallback goes on.
        Raises EngineDiedError.
        """
        subject = Subject(engine, images, image_sha256, encoded, self.sampling)
        made = await self.make_attempts(subject)
        fallback = self.fallback
        while fallback is not None and made.reason in REASONS:
            made = made.followed_by(await fallback.make_attempts(subject, earlier=made.attempts))
            fallback = fallback.fallback
        return made

    async def make_attempts(self, subject: "Subject", *, earlier: int = 0) -> Dialogue:
        """The outcome of the attempts with this protocol alone, which are numbered after the `earlier` ones."""
        last = earlier + self.tries
        output_tokens = prompt_tokens = requests = 0
        for attempt in range(earlier + 1, last + 1):
            state = _Attempt(seed=seed_of(self.run_seed, subject.image_sha256, attempt))
            reason, detail, final = None, None, False
            try:
                await self._attempt(subject, state)
            except MalformedAnswer as malformed:
                reason = malformed.reason
            except RefusedRequestError as refused:
                reason, detail, final = refused.reason, refused.detail, True
            output_tokens += state.output_tokens
            prompt_tokens += state.prompt_tokens
            requests += state.requests
            if reason is None or final or attempt == last:
                return Dialogue(
                    pairs=tuple(state.pairs) if reason is None else (),
                    reason=reason,
                    detail=detail,
                    raw=tuple(state.raw),
                    finish_reasons=tuple(state.finish_reasons),
                    answer_logprobs=tuple(state.answer_logprobs) if reason is None else (),
                    statements=state.statements if reason is None else None,
                    attempts=attempt,
                    seed=state.seed,
                    output_tokens=output_tokens,
                    prompt_tokens=prompt_tokens,
                    requests=requests,
                )
        raise AssertionError("unreachable: there is at least one attempt")

    async def _attempt(self, subject: "Subject", state: "_Attempt") -> None:
        prompts: list[str] = []
        answers: list[str] = []
        for group in self.protocol.groups:
            # The text is cleaned after filling in answers: "<{answer_1}>" may become a special token.
            prompts += [self._clean(self.protocol.user_text(index, prompts, answers)) for index in group]
            conversations = [self.protocol.conversation(prompts[: index + 1], answers) for index in group]
            schemas = [self._schema(self.protocol.turns[index]) for index in group]
            asked = zip(conversations, group, schemas, strict=True)
            said = await _all([self._ask(subject, state, *one) for one in asked])
            state.raw += [answer.text for answer in said]
            state.finish_reasons += [answer.finish_reason for answer in said]
            for index, answer in zip(group, said, strict=True):
                answers.append(self._read(self.protocol.turns[index], prompts[index], answer, state))
        if self.protocol.statement is not None:
            first = len(self.protocol.turns)
            wanted = [self._statement(subject, state, pair, first + n) for n, pair in enumerate(state.pairs)]
            state.statements = tuple(await _all(wanted))

    def _clean(self, text: str) -> str:
        return without_special_tokens(text, self.special_tokens)

    def _read(self, turn: Turn, prompt: str, answer: Answer, state: "_Attempt") -> str:
        """Adds the pairs of an answer; returns its text for later turns. Raises MalformedAnswer."""
        if not answer.saw_image:
            raise RefusedRequestError(IMAGE_NOT_SEEN, "the prompt had fewer image tokens than images when it ran")
        if turn.parse == "qa-list":
            truncated = answer.finish_reason == "length"
            pairs = parse_qa_list(answer.text, pairs=turn.pairs, truncated=truncated, special=self.special_tokens)
            text = self._clean(without_thinking(answer.text)).strip()
        else:
            pairs = [QAPair(prompt, parse_answer(answer.text, question=prompt, special=self.special_tokens))]
            text = pairs[0].assistant
        state.pairs += pairs
        state.answer_logprobs += answer_logprobs(
            answer.text, answer.tokens, pairs, questions_in_text=turn.parse == "qa-list"
        )
        return text

    def _schema(self, turn: Turn) -> dict[str, Any] | None:
        return pairs_schema(turn.pairs) if self.structured and turn.parse == "qa-list" else None

    async def _ask(
        self,
        subject: "Subject",
        state: "_Attempt",
        messages: Conversation,
        number: int,
        schema: dict[str, Any] | None = None,
    ) -> Answer:
        """The answer to request `number` of the attempt."""
        answer = await subject.ask(messages, state.seed + number, self.sampling, schema)
        state.count(answer)
        return answer

    async def _statement(self, subject: "Subject", state: "_Attempt", pair: QAPair, number: int) -> str | None:
        """A sentence for the pair. The pair is good without one, so a refused request is no loss of it."""
        prompt = self._clean(self.protocol.statement_text(pair.user, pair.assistant))
        try:
            answer = await self._ask(subject, state, self.protocol.statement_conversation(prompt), number)
            text = parse_answer(answer.text, question=prompt, special=self.special_tokens)
        except (RefusedRequestError, MalformedAnswer):
            return None
        return statement_of(text, question=pair.user, truncated=answer.finish_reason == "length")


@dataclass(slots=True)
class _Attempt:
    seed: int
    pairs: list[QAPair] = field(default_factory=list[QAPair])
    raw: list[str] = field(default_factory=list[str])
    finish_reasons: list[str] = field(default_factory=list[str])
    answer_logprobs: list[float | None] = field(default_factory=list["float | None"])
    output_tokens: int = 0
    prompt_tokens: int = 0
    requests: int = 0
    statements: tuple[str | None, ...] | None = None

    def count(self, answer: Answer) -> None:
        """Counts an answer."""
        self.output_tokens += answer.output_tokens
        self.prompt_tokens += answer.prompt_tokens
        self.requests += 1


@dataclass(frozen=True, slots=True)
class Subject:
    """An image, or several, and the engine that is asked about them."""

    engine: Engine
    images: tuple[Image.Image, ...]
    image_sha256: str
    encoded: tuple[bytes, ...]
    sampling: Sampling
    """The decoding settings that the engine was started with."""

    async def ask(self, messages: Conversation, seed: int, sampling: Sampling, schema: dict[str, Any] | None) -> Answer:
        """The engine's answer. Raises RefusedRequestError, or EngineDiedError."""
        return await self.engine.answer(
            Request(
                messages=messages,
                images=self.images,
                image_sha256=self.image_sha256,
                seed=seed,
                encoded=self.encoded,
                sampling=None if sampling == self.sampling else sampling,
                schema=schema,
            )
        )


async def _all(requests: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order. Waits for all of them, also after an error, so that what is answered is counted."""
    if len(requests) == 1:
        return [await requests[0]]
    results = await asyncio.gather(*requests, return_exceptions=True)
    error = next((result for result in results if isinstance(result, BaseException)), None)
    if error is None:
        return [result for result in results if not isinstance(result, BaseException)]
    try:
        raise error
    finally:
        # An error that its own traceback refers to would keep the image in memory.
        results.clear()
        del error


def seed_of(run_seed: int, image_sha256: str, attempt: int) -> int:
    """Seed of the first turn of an attempt, in [0, 2^62). Turn k of the attempt uses this seed plus k - 1."""
    digest = hashlib.sha256(f"{run_seed}/{image_sha256}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 2
