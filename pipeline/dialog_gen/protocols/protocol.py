"""Protocols: the questions that are asked about every image, as small TOML files of turns.

The `user` text of a turn may contain `{prompt_1}`, `{answer_1}`, ...: the texts of earlier turns. Earlier turns are
part of the conversation unless the protocol sets `context = "none"`. `parse` says how an answer is read: with `answer`,
the user's text and the answer are one question-answer pair; with `qa-list`, the answer is a list of `pairs` questions
with their answers.

    system = "..."        a text of the role `system`, before everything else
    fallback = "..."      the protocol, by name or file, that asks again about an image whose answers were all malformed
    [[examples]]          a dialogue before the first turn that shows the form: `user` and `assistant` of each
    [statement]           one more request for each pair, for a sentence that says the same: `user`, with `{question}`
                          and `{answer}`
"""

import functools
import hashlib
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from dialog_gen.core.errors import UsageError
from dialog_gen.core.toml_files import find_toml, read_toml_model, shipped_toml

_STRICT = ConfigDict(frozen=True, extra="forbid")
_IMAGE_TOKEN = "<image>"  # noqa: S105 - no secret


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    text: str
    example: bool = False
    """Whether the message belongs to the protocol's examples, which have no image."""


Conversation = tuple[Message, ...]


def image_place(messages: Conversation) -> int:
    """The number, from 0, of the message that the image belongs to: the user's first one that is no example."""
    return next(place for place, message in enumerate(messages) if message.role == "user" and not message.example)


def conversation(*texts: str) -> Conversation:
    """Makes a conversation from alternating texts. Raises ValueError unless the first and the last are the user's."""
    if len(texts) % 2 == 0:
        raise ValueError(f"a conversation to be answered ends with the user: an odd number of turns, got {len(texts)}")
    return _alternating(texts)


def _alternating(texts: Iterable[str], *, example: bool = False) -> Conversation:
    return tuple(Message("assistant" if n % 2 else "user", text, example) for n, text in enumerate(texts))


MOST_TOKENS = 8192
"""The tokens that an answer may have at most."""
MOST_TOP_K = 1_000_000
"""More tokens than a vocabulary has."""
_LEAST_TEMPERATURE = 0.01


class Sampling(BaseModel):
    """Decoding settings; `temperature = 0` is greedy decoding."""

    model_config = _STRICT

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=1e-6, le=1)
    """Only the most likely tokens that have this much of the probability together are sampled."""
    max_tokens: int = Field(default=256, ge=1, le=MOST_TOKENS)
    """The maximum number of tokens of one answer."""
    top_k: int = Field(default=0, ge=0, le=MOST_TOP_K)
    """Only this many of the most likely tokens are sampled; 0 for all."""
    repetition_penalty: float = Field(default=1.0, ge=0.1, le=2)
    """The scores of tokens that the prompt or the answer has already are divided by this (arXiv 1909.05858).

    Below 1 it rewards repetition: a tenth makes scores ten times as large, and with less no other token is chosen.
    """
    stop: tuple[str, ...] = Field(default=(), max_length=4)
    """Texts at which an answer ends; they are not part of it."""

    @field_validator("temperature")
    @classmethod
    def _is_zero_or_divides(cls, temperature: float) -> float:
        if 0 < temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"0, which takes the most likely token, or at least {_LEAST_TEMPERATURE}: scores divided by less are "
                "no numbers any more"
            )
        return temperature

    @field_validator("stop")
    @classmethod
    def _has_no_empty_stop(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("stop has an empty text: every answer would end at once")
        return stop

    def recorded(self) -> dict[str, Any]:
        """The settings as a configuration records them.

        Settings that were added later are left out at their defaults, so that datasets that were made before stay the
        same configuration.
        """
        added = {"top_k", "repetition_penalty", "stop"}
        return self.model_dump(mode="json", exclude=added) | self.model_dump(
            mode="json", include=added, exclude_defaults=True
        )


def _without_image_token(text: str) -> str:
    if _IMAGE_TOKEN in text:
        raise ValueError(f"remove {_IMAGE_TOKEN}: the model's chat template puts the image in its place")
    return text


def _says_something(text: str) -> str:
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise ValueError("holds nothing but white space: write what is said")
    return text


_Text = Annotated[str, Field(min_length=1), AfterValidator(_says_something), AfterValidator(_without_image_token)]


class Turn(BaseModel):
    """One turn of a protocol: what the user says, and how the answer is read."""

    model_config = _STRICT

    user: _Text
    parse: Literal["answer", "qa-list"] = "answer"
    pairs: int = Field(default=1, ge=1, le=16)
    """The number of question-answer pairs in a `qa-list`. More are dropped; with fewer the answer is malformed."""

    @model_validator(mode="after")
    def _pairs_fit_parse(self) -> "Turn":
        if self.parse == "answer" and self.pairs != 1:
            raise ValueError(f'pairs = {self.pairs} needs parse = "qa-list"')
        return self


class Example(BaseModel):
    """One turn of a dialogue, about no image, that shows the model the form of an answer."""

    model_config = _STRICT

    user: _Text
    assistant: _Text


class StatementTurn(BaseModel):
    """The request for a sentence that says what a question and its answer say."""

    model_config = _STRICT

    user: _Text

    @field_validator("user")
    @classmethod
    def _has_question_and_answer(cls, user: str) -> str:
        if set(_placeholders(user)) != {"question", "answer"}:
            raise ValueError("needs {question} and {answer}, and no other placeholder. Write {{ and }} for braces.")
        return user


class Protocol(BaseModel):
    """A named sequence of turns with its decoding settings."""

    model_config = _STRICT

    name: str
    description: str = ""
    sampling: Sampling = Sampling()
    turns: tuple[Turn, ...] = Field(min_length=1, max_length=16)
    context: Literal["dialogue", "none"] = "dialogue"
    """Whether earlier turns are part of the conversation that a later turn continues."""
    system: _Text | None = None
    """A text of the role `system`, which must be known to the model's chat template."""
    examples: tuple[Example, ...] = Field(default=(), max_length=16)
    statement: StatementTurn | None = None
    fallback: str | None = Field(default=None, min_length=1)
    """The protocol, by name or file, that asks again about an image whose attempts all gave malformed answers."""

    @model_validator(mode="after")
    def _placeholders_are_earlier_turns(self) -> "Protocol":
        for number, turn in enumerate(self.turns, 1):
            known = [f"{kind}_{k}" for k in range(1, number) for kind in ("prompt", "answer")]
            for name in _placeholders(turn.user):
                if name not in known:
                    raise ValueError(
                        f"turn {number}: unknown placeholder {{{name}}}. A turn may use "
                        + (", ".join(f"{{{k}}}" for k in known) or "none here: there is no earlier turn")
                        + ". Write {{ and }} for braces."
                    )
        return self

    @property
    def sha256(self) -> str:
        """Hash of all that affects prompts or parsing: not of name, description, sampling and fallback."""
        content = self.model_dump_json(include={"turns", "context"})
        # Protocols without these keep the hash that datasets made before have.
        added = self.model_dump_json(include={"system", "examples", "statement"}, exclude_defaults=True)
        return hashlib.sha256((content if added == "{}" else content + added).encode()).hexdigest()

    @property
    def pairs(self) -> int:
        """The number of question-answer pairs in a complete dialogue."""
        return sum(turn.pairs for turn in self.turns)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """What the protocol itself says: the place of each text in its file, such as "turns.1.user", and the text."""
        system = [("system", self.system)] if self.system is not None else []
        statement = [("statement.user", self.statement.user)] if self.statement is not None else []
        examples = [
            (f"examples.{number}.{role}", getattr(example, role))
            for number, example in enumerate(self.examples, 1)
            for role in ("user", "assistant")
        ]
        turns = [(f"turns.{number}.user", turn.user) for number, turn in enumerate(self.turns, 1)]
        return [*system, *examples, *turns, *statement]

    @property
    def groups(self) -> list[range]:
        """The numbers of the turns, in groups of those that can be asked at the same time."""
        every = range(len(self.turns))
        if self.context == "none" and not any(_placeholders(turn.user) for turn in self.turns):
            return [every]
        return [range(index, index + 1) for index in every]

    def user_text(self, index: int, prompts: Sequence[str], answers: Sequence[str]) -> str:
        """The user's text of turn `index` (from 0), with the prompts and answers of earlier turns filled in."""
        values = {f"prompt_{k}": text for k, text in enumerate(prompts, 1)}
        values |= {f"answer_{k}": text for k, text in enumerate(answers, 1)}
        return self.turns[index].user.format_map(values)

    def conversation(self, prompts: Sequence[str], answers: Sequence[str]) -> Conversation:
        """The conversation for the next answer: only the last prompt if the protocol has no context.

        `prompts` are the user's texts up to and including this turn, `answers` the answers before it.
        """
        earlier = () if self.context == "none" else zip(prompts, answers, strict=False)
        return self._preface + conversation(*(text for pair in earlier for text in pair), prompts[-1])

    def statement_text(self, question: str, answer: str) -> str:
        """The user's text that asks for the statement of a pair. Raises ValueError if the protocol has no such turn."""
        if self.statement is None:
            raise ValueError(f"the protocol {self.name} asks for no statements")
        return self.statement.user.format_map({"question": question, "answer": answer})

    def statement_conversation(self, prompt: str) -> Conversation:
        """The conversation for a statement; the examples, which show another form, are no part of it."""
        return (*(message for message in self._preface if not message.example), *conversation(prompt))

    @property
    def _preface(self) -> Conversation:
        """The messages before the first turn."""
        system = () if self.system is None else (Message("system", self.system),)
        texts = (text for example in self.examples for text in (example.user, example.assistant))
        return (*system, *_alternating(texts, example=True))

    def rehearsal(self, answers: Sequence[str]) -> list[Conversation]:
        """The conversation for each turn's answer, if the earlier answers are these; the last one may be left out."""
        prompts: list[str] = []
        conversations: list[Conversation] = []
        for index in range(len(self.turns)):
            prompts.append(self.user_text(index, prompts, answers[:index]))
            conversations.append(self.conversation(prompts, answers[:index]))
        return conversations


def _placeholders(template: str) -> list[str]:
    """The contents of all braces as `format_map` reads them, including dots, brackets, conversions and formats."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r}: {error}. Write {{{{ and }}}} for braces.") from None
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in fields
        if name is not None
    ]


def shipped_protocols() -> dict[str, Path]:
    """The protocols of this package: name -> TOML file."""
    return shipped_toml(Path(str(files("dialog_gen.protocols"))))


@functools.cache
def load_protocol(name_or_file: str) -> Protocol:
    """Loads a shipped protocol by its name, or the user's by the path of its TOML file.

    Raises UsageError if the name is unknown, the file cannot be read, or its content is not a protocol.
    """
    file = find_toml(name_or_file, shipped_protocols(), "protocol")
    protocol = read_toml_model(file, Protocol, "protocol")
    if protocol.fallback is not None and protocol.fallback.endswith(".toml"):
        return protocol.model_copy(update={"fallback": str(file.parent / protocol.fallback)})
    return protocol


def load_with_fallbacks(name_or_file: str) -> tuple[Protocol, ...]:
    """The protocol, and the fallbacks that follow each other, the first one first.

    A fallback that asks for no statements asks for those of the protocol before it. Raises UsageError like
    `load_protocol`, and if two of them have one name, so that a row could not say which one made it.
    """
    found = [load_protocol(name_or_file)]
    while (following := found[-1].fallback) is not None:
        protocol = load_protocol(following)
        if protocol.name in (earlier.name for earlier in found):
            raise UsageError(
                f"protocol {found[-1].name}: its fallback {following} has the name {protocol.name}, which an earlier "
                "protocol of this run has: choose another one, or give it another `name`."
            )
        if protocol.statement is None:
            protocol = protocol.model_copy(update={"statement": found[-1].statement})
        found.append(protocol)
    return tuple(found)
