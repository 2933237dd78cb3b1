"""Training examples of the decoder, built from an image's texts. Evaluation uses the same prompts.

| task       | vector            | prompt                      | target             |
|------------|-------------------|-----------------------------|--------------------|
| vqa        | context           | question: QUESTION          | the answer, lower  |
| captioning | the caption's own | caption:                    | the caption, lower |
| entailment | context           | entailment: QUESTION ANSWER | yes or no          |

Entailment: the statement is a question with an answer. It follows from the context if the answer is the one in the
dialogue. It contradicts the context if the answer belongs to another image's question of the same type
(`question_type`).

Targets are in lower case, as in the published code: VQA's official accuracy compares a unanimous answer as it is, so
that "Yes" does not count as "yes".
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
    """The prompt that the decoder reads after the vector, and the target that it must write."""

    task: WritingTask
    prompt: str
    target: str


def vqa_example(pair: Pair) -> Example:
    """The VQA example of a pair: the question is the prompt, the answer in lower case the target."""
    return Example("vqa", PROMPTS["vqa"].format(question=pair.question), pair.answer.lower())


def captioning_example(caption: str) -> Example:
    """The captioning example of an image: the caption in lower case is the target."""
    return Example("captioning", PROMPTS["captioning"], caption.lower())


def entailment_example(pair: Pair, wrong: str | None) -> Example:
    """The entailment example of a pair: it follows if `wrong` is None, and contradicts with the answer `wrong`."""
    prompt = PROMPTS["entailment"].format(question=pair.question, answer=pair.answer if wrong is None else wrong)
    return Example("entailment", prompt, FOLLOWS if wrong is None else CONTRADICTS)


def wrong_answer(pair: Pair, others: Iterable[Pair]) -> str | None:
    """The first answer in `others` that differs from the pair's and belongs to a question of the same type, or None."""
    kind, right = question_type(pair.question), pair.answer.casefold()
    for other in others:
        if other.answer.casefold() != right and question_type(other.question) == kind:
            return other.answer
    return None
