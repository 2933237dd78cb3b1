"""What the decoder learns from the texts of an image. The prompt of a task is the same in training and evaluation.

| task       | vector            | prompt                      | target             |
|------------|-------------------|-----------------------------|--------------------|
| vqa        | context           | question: QUESTION          | the answer         |
| captioning | the caption's own | caption:                    | the caption        |
| entailment | context           | entailment: QUESTION ANSWER | yes or no          |

Entailment: the statement is a question with an answer. It follows from the context where the answer is the one that the
dialogue gives, and contradicts it where it is another image's to a question of the same type (`question_type`).
"""

from collections.abc import Iterable
from typing import NamedTuple

from dialog_gen.clip.base import WritingTask
from dialog_gen.clip.close.layout import CONTRADICTS, FOLLOWS, PROMPTS
from dialog_gen.inspect.statistics import question_type


class Pair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class Example(NamedTuple):
    """What the decoder is given beside a vector, and what it is to write."""

    task: WritingTask
    prompt: str
    target: str


def vqa_example(pair: Pair) -> Example:
    """Question to answer."""
    return Example("vqa", PROMPTS["vqa"].format(question=pair.question), pair.answer)


def captioning_example(caption: str) -> Example:
    """The caption itself."""
    return Example("captioning", PROMPTS["captioning"], caption)


def entailment_example(pair: Pair, wrong: str | None) -> Example:
    """Whether a statement follows: that of the pair, or, where there is a `wrong` answer, the contradiction."""
    prompt = PROMPTS["entailment"].format(question=pair.question, answer=pair.answer if wrong is None else wrong)
    return Example("entailment", prompt, FOLLOWS if wrong is None else CONTRADICTS)


def wrong_answer(pair: Pair, others: Iterable[Pair]) -> str | None:
    """The first answer of `others` that another one gives to a question of the same type; None if there is none."""
    kind, right = question_type(pair.question), pair.answer.casefold()
    for other in others:
        if other.answer.casefold() != right and question_type(other.question) == kind:
            return other.answer
    return None
