"""Reads questions and annotations of VQA v1 (arXiv 1505.00468) and v2 (arXiv 1612.00837), as on visualqa.org.

The files of v2 (v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json) have the layout of v1's
and are judged by the same published code, but have no MultipleChoice questions. Its ids are the image's id and three
more digits, in place of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.metrics.vqa import PEOPLE
from dialog_eval.results import read_json_file
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of

CHOICES = 18


class VqaFilesError(UsageError, ValueError):
    """The files are not of VQA, or do not belong together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VqaItem:
    """A question with its answers."""

    question_id: int
    image_id: int
    question: str
    question_type: str
    """The question's first words, such as "how many" """
    answer_type: str
    """"yes/no", "number" or "other" """
    answer: str
    """The answer given most often (`multiple_choice_answer`)"""
    answers: tuple[str, ...]
    """The answers of ten people"""
    choices: tuple[str, ...]
    """The 18 candidates; empty for OpenEnded questions"""


class _Question(BaseModel):
    question_id: int
    image_id: int
    question: str
    multiple_choices: list[str] | None = None


class _Questions(BaseModel):
    data_subtype: str | None = None
    questions: list[_Question]


class _Answer(TypedDict):
    # A real split has 1.2 million answers; dictionaries instead of models halve the time.
    answer: str


class _Annotation(BaseModel):
    question_id: int
    image_id: int
    question_type: str
    answer_type: str
    multiple_choice_answer: str
    answers: list[_Answer]


class _Annotations(BaseModel):
    data_subtype: str | None = None
    annotations: list[_Annotation]


_Layout = TypeVar("_Layout", _Questions, _Annotations)


def load_vqa(questions: Path, annotations: Path) -> list[VqaItem]:
    """Reads the questions in their file's order, each with its annotation.

    `questions`: an OpenEnded or MultipleChoice questions file; `annotations`: the annotations file of the same split.

    Raises VqaFilesError, which names the file and the first invalid question: for a file that cannot be read, is not
    JSON of this layout or is empty; files of different splits (`data_subtype`); a question that occurs twice in one of
    them; questions and annotations that do not match one to one or disagree on the image; a number of candidates other
    than 18, for some questions or for all; a number of answers other than ten.
    """
    question_file, annotation_file = _read(questions, _Questions), _read(annotations, _Annotations)
    asked, annotated = question_file.questions, annotation_file.annotations
    # Different splits may contain the same ids.
    splits = question_file.data_subtype, annotation_file.data_subtype
    if None not in splits and splits[0] != splits[1]:
        raise VqaFilesError(
            f"{questions} is of the split {splits[0]!r}, {annotations} of {splits[1]!r}: give those of one split."
        )
    _check_ids(questions, [question.question_id for question in asked])
    _check_ids(annotations, [annotation.question_id for annotation in annotated])
    by_id = {annotation.question_id: annotation for annotation in annotated}
    _check_match(questions, {question.question_id for question in asked}, annotations, set(by_id))
    with_choices = asked[0].multiple_choices is not None
    return [_item(q, by_id[q.question_id], with_choices, questions, annotations) for q in asked]


def load_answers(annotations: Path) -> list[tuple[str, str]]:
    """The (question type, most frequent answer) of each question in an annotations file, in its order.

    Raises VqaFilesError for a file that cannot be read, is not JSON of this layout or is empty.
    """
    annotated = _read(annotations, _Annotations).annotations
    _check_ids(annotations, [annotation.question_id for annotation in annotated])
    return [(annotation.question_type, annotation.multiple_choice_answer) for annotation in annotated]


def _item(
    question: _Question, annotation: _Annotation, with_choices: bool, questions: Path, annotations: Path
) -> VqaItem:
    name = f"question {question.question_id}"
    if question.image_id != annotation.image_id:
        both = f"{question.image_id} in {questions}, {annotation.image_id} in {annotations}"
        raise VqaFilesError(f"{name} is about image {both}. Give the questions and annotations of one split.")
    if with_choices != (question.multiple_choices is not None):
        raise VqaFilesError(f"{questions}: some questions have multiple_choices, others, such as {name}, differ.")
    choices = tuple(question.multiple_choices or ())
    if with_choices and len(choices) != CHOICES:
        raise VqaFilesError(f"{questions}: {name} has {len(choices)} multiple_choices, expected {CHOICES}.")
    if len(annotation.answers) != PEOPLE:
        raise VqaFilesError(
            f"{annotations}: {name} has {count_of(len(annotation.answers), 'answer')}, expected {PEOPLE}."
        )
    return VqaItem(
        question_id=question.question_id,
        image_id=question.image_id,
        question=question.question,
        question_type=annotation.question_type,
        answer_type=annotation.answer_type,
        answer=annotation.multiple_choice_answer,
        answers=tuple(answer["answer"] for answer in annotation.answers),
        choices=choices,
    )


def _read(path: Path, layout: type[_Layout]) -> _Layout:
    *_, name = layout.model_fields
    hint = "Are questions and annotations swapped?"
    return read_json_file(path, layout, f"is not a VQA {name} file", hint, VqaFilesError)


def _check_ids(path: Path, ids: Sequence[int]) -> None:
    if not ids:
        raise VqaFilesError(f"{path} holds no questions.")
    seen: set[int] = set()
    for question_id in ids:
        if question_id in seen:
            raise VqaFilesError(f"{path} holds question {question_id} twice.")
        seen.add(question_id)


def _check_match(questions: Path, asked: set[int], annotations: Path, annotated: set[int]) -> None:
    if asked == annotated:
        return
    parts = [
        f"{len(only)} only in {path} (such as {min(only)})"
        for path, only in ((questions, asked - annotated), (annotations, annotated - asked))
        if only
    ]
    raise VqaFilesError(
        f"Questions and annotations do not match: both have {count_of(len(asked & annotated), 'question')}, "
        f"{', '.join(parts)}. Give the questions and annotations of one split."
    )
