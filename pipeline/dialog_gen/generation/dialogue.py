"""Generates one dialogue about one image, turn by turn. A malformed answer starts a new attempt.

A dialogue is rejected for one of these reasons: those of `dialog_gen.protocols.parsing`, the engine's `engine_refused`
and `engine_error`, and

image_not_seen  the prompt had no image tokens when it ran, so the answer is not about the image
"""

import hashlib
from dataclasses import dataclass, field

from PIL import Image

from dialog_gen.engines.base import Engine, RefusedRequestError, Request
from dialog_gen.generation.logprobs import answer_logprobs
from dialog_gen.protocols.parsing import MalformedAnswer, QAPair, parse_answer, parse_qa_list, without_special_tokens
from dialog_gen.protocols.protocol import Protocol, Sampling

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
    attempts: int
    seed: int
    output_tokens: int
    """Sum over all attempts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueGenerator:
    """The settings with which a run generates every dialogue. Plain data, so another process can receive it."""

    protocol: Protocol
    chat_template: str | None
    """None if a server renders the conversations."""
    sampling: Sampling
    run_seed: int
    attempts: int = DEFAULT_ATTEMPTS

    @property
    def prompt_sha256(self) -> str:
        """SHA-256 of everything that a prompt, or the parsing of its answer, depends on; in hexadecimal digits."""
        return hashlib.sha256(f"{self.chat_template or ''}\n{self.protocol.sha256}".encode()).hexdigest()

    async def generate(self, engine: Engine, image: Image.Image, image_sha256: str) -> Dialogue:
        """Generates the dialogue about `image`. It depends only on the image's bytes, these settings and the model.

        A malformed answer starts the dialogue again with a new seed, up to `attempts` times. Greedy decoding would give
        the same answer again, so it has one attempt. Raises EngineDiedError.
        """
        attempts = self.attempts if self.sampling.temperature > 0 else 1
        output_tokens = 0
        for attempt in range(1, attempts + 1):
            state = _Attempt(seed=seed_of(self.run_seed, image_sha256, attempt))
            reason, detail, final = None, None, False
            try:
                await self._attempt(engine, image, image_sha256, state)
            except MalformedAnswer as malformed:
                reason = malformed.reason
            except RefusedRequestError as refused:
                reason, detail, final = refused.reason, refused.detail, True
            output_tokens += state.output_tokens
            if reason is None or final or attempt == attempts:
                return Dialogue(
                    pairs=tuple(state.pairs) if reason is None else (),
                    reason=reason,
                    detail=detail,
                    raw=tuple(state.raw),
                    finish_reasons=tuple(state.finish_reasons),
                    answer_logprobs=tuple(state.answer_logprobs) if reason is None else (),
                    attempts=attempt,
                    seed=state.seed,
                    output_tokens=output_tokens,
                )
        raise AssertionError("unreachable: attempts is at least 1")

    async def _attempt(self, engine: Engine, image: Image.Image, image_sha256: str, state: "_Attempt") -> None:
        prompts: list[str] = []
        answers: list[str] = []
        for index, turn in enumerate(self.protocol.turns):
            # The text is cleaned after filling in answers: "<{answer_1}>" may become a special token.
            prompts.append(without_special_tokens(self.protocol.user_text(index, prompts, answers)))
            answer = await engine.answer(
                Request(
                    messages=self.protocol.conversation(prompts, answers),
                    image=image,
                    image_sha256=image_sha256,
                    seed=state.seed + index,
                )
            )
            state.raw.append(answer.text)
            state.finish_reasons.append(answer.finish_reason)
            state.output_tokens += answer.output_tokens
            if not answer.saw_image:
                raise RefusedRequestError(IMAGE_NOT_SEEN, "the prompt had no image tokens when it ran")
            if turn.parse == "qa-list":
                truncated = answer.finish_reason == "length"
                pairs = parse_qa_list(answer.text, pairs=turn.pairs, truncated=truncated)
                answers.append(without_special_tokens(answer.text).strip())
            else:
                pairs = [QAPair(prompts[-1], parse_answer(answer.text, question=prompts[-1]))]
                answers.append(pairs[0].assistant)
            state.pairs += pairs
            state.answer_logprobs += answer_logprobs(
                answer.text, answer.tokens, pairs, questions_in_text=turn.parse == "qa-list"
            )


@dataclass(slots=True)
class _Attempt:
    seed: int
    pairs: list[QAPair] = field(default_factory=list[QAPair])
    raw: list[str] = field(default_factory=list[str])
    finish_reasons: list[str] = field(default_factory=list[str])
    answer_logprobs: list[float | None] = field(default_factory=list["float | None"])
    output_tokens: int = 0


def seed_of(run_seed: int, image_sha256: str, attempt: int) -> int:
    """Seed of the first turn of an attempt, in [0, 2^62). Turn k of the attempt uses this seed plus k - 1."""
    digest = hashlib.sha256(f"{run_seed}/{image_sha256}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 2
