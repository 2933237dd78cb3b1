"""Kinds of questions about a scene, for either version of the embedded world."""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene and its true answer; `kind` is its key in a world's `QUESTION_KINDS`."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class QuestionKind(Generic[S]):
    """One kind of question about scenes of type S.

    `vqa_type` and `answer_type` are fields of VQAv1's annotations. `template` has slots such as {color}; `pattern`
    matches a question and captures its slots. `answer` maps a scene and slots to the true answer, or to None if the
    question is not well-posed. `ask` draws slots that give a well-posed question about a scene, or returns None if
    there are none.
    """

    vqa_type: str
    answer_type: str
    template: str
    answer: Callable[..., str | None]
    ask: Callable[[S, random.Random], tuple[str, ...] | None]
    pattern: re.Pattern[str]

    @staticmethod
    def of(
        vqa_type: str,
        answer_type: str,
        template: str,
        answer: Callable[..., str | None],
        ask: Callable[[S, random.Random], tuple[str, ...] | None],
        *,
        words: Mapping[str, tuple[str, ...]],
    ) -> "QuestionKind[S]":
        """A kind whose pattern accepts `words`: slot -> the words that may fill it."""
        pattern = re.escape(template)
        for slot, choices in words.items():
            pattern = pattern.replace(re.escape(f"{{{slot}}}"), f"({'|'.join(choices)})")
        return QuestionKind(vqa_type, answer_type, template, answer, ask, re.compile(pattern, re.IGNORECASE))


def draw_questions(kinds: Mapping[str, QuestionKind[S]], scene: S, rng: random.Random, count: int) -> list[Question]:
    """`count` well-posed questions about the scene, each of a different kind, in random order.

    Raises ValueError if fewer kinds are possible for the scene.
    """
    questions: list[Question] = []
    for name in rng.sample(list(kinds), len(kinds)):
        kind = kinds[name]
        slots = kind.ask(scene, rng)
        answer = None if slots is None else kind.answer(scene, *slots)
        if slots is None or answer is None:
            continue
        names = re.findall(r"\{(\w+)\}", kind.template)
        questions.append(Question(name, kind.template.format(**dict(zip(names, slots, strict=True))), answer))
        if len(questions) == count:
            return questions
    raise ValueError(f"the scene offers {len(questions)} kinds of question, {count} were requested")


def kind_of_question(kinds: Mapping[str, QuestionKind[S]], question: str) -> str:
    """The kind of a model's question: a name of `kinds`, or "other"."""
    asked = plain(question) + "?"
    return next((name for name, kind in kinds.items() if kind.pattern.fullmatch(asked)), "other")


def plain(text: str) -> str:
    """The text in lower case with single spaces, without a leading article and final punctuation."""
    text = " ".join(text.lower().split()).rstrip(" .!?")
    return re.sub(r"^(?:in )?(?:the|a) ", "", text)
