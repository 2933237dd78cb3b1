"""Protocols: the questions that are asked about every image, as small TOML files of turns.

The `user` text of a turn may contain `{prompt_1}`, `{answer_1}`, ...: the texts of earlier turns. Earlier turns are
part of the conversation unless the protocol sets `context = "none"`. `parse` says how an answer is read: with `answer`,
the user's text and the answer are one question-answer pair; with `qa-list`, the answer is a list of `pairs` questions
with their answers.
"""

import functools
import hashlib
import string
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dialog_gen.core.toml_files import find_toml, read_toml_model, shipped_toml

_STRICT = ConfigDict(frozen=True, extra="forbid")
_IMAGE_TOKEN = "<image>"  # noqa: S105 - no secret


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. The image belongs to the first message."""

    role: Literal["user", "assistant"]
    text: str


Conversation = tuple[Message, ...]


def conversation(*texts: str) -> Conversation:
    """Makes a conversation from alternating texts. Raises ValueError unless the first and the last are the user's."""
    if len(texts) % 2 == 0:
        raise ValueError(f"a conversation to be answered ends with the user: an odd number of turns, got {len(texts)}")
    return tuple(Message("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))


class Sampling(BaseModel):
    """Decoding settings; `temperature = 0` is greedy decoding."""

    model_config = _STRICT

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1, le=8192)
    """The maximum number of tokens of one answer."""


class Turn(BaseModel):
    """One turn of a protocol: what the user says, and how the answer is read."""

    model_config = _STRICT

    user: str = Field(min_length=1)
    parse: Literal["answer", "qa-list"] = "answer"
    pairs: int = Field(default=1, ge=1, le=16)
    """The number of question-answer pairs in a `qa-list`. More are dropped; with fewer the answer is malformed."""

    @field_validator("user")
    @classmethod
    def _has_no_image_token(cls, user: str) -> str:
        if _IMAGE_TOKEN in user:
            raise ValueError(f"remove {_IMAGE_TOKEN}: the model's chat template puts the image in its place")
        return user

    @model_validator(mode="after")
    def _pairs_fit_parse(self) -> "Turn":
        if self.parse == "answer" and self.pairs != 1:
            raise ValueError(f'pairs = {self.pairs} needs parse = "qa-list"')
        return self


class Protocol(BaseModel):
    """A named sequence of turns with its decoding settings."""

    model_config = _STRICT

    name: str
    description: str = ""
    sampling: Sampling = Sampling()
    turns: tuple[Turn, ...] = Field(min_length=1, max_length=16)
    context: Literal["dialogue", "none"] = "dialogue"
    """Whether earlier turns are part of the conversation that a later turn continues."""

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
        """Hash of everything that affects prompts or parsing, that is, not of name, description and sampling."""
        content = self.model_dump_json(include={"turns", "context"})
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def pairs(self) -> int:
        """The number of question-answer pairs in a complete dialogue."""
        return sum(turn.pairs for turn in self.turns)

    def user_text(self, index: int, prompts: Sequence[str], answers: Sequence[str]) -> str:
        """The user's text of turn `index` (from 0), with the prompts and answers of earlier turns filled in."""
        values = {f"prompt_{k}": text for k, text in enumerate(prompts, 1)}
        values |= {f"answer_{k}": text for k, text in enumerate(answers, 1)}
        return self.turns[index].user.format_map(values)

    def conversation(self, prompts: Sequence[str], answers: Sequence[str]) -> Conversation:
        """The conversation for the next answer: only the last prompt if the protocol has no context.

        `prompts` are the user's texts up to and including this turn, `answers` the answers before it.
        """
        if self.context == "none":
            return conversation(prompts[-1])
        return conversation(*(text for pair in zip(prompts, answers, strict=False) for text in pair), prompts[-1])


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
    return read_toml_model(find_toml(name_or_file, shipped_protocols(), "protocol"), Protocol, "protocol")
