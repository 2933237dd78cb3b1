import json
from pathlib import Path
from typing import Any

import pytest

from dialog_eval.data.vqa import VqaItem, load_vqa
from dialog_eval.metrics.vqa import vqa_accuracy
from dialog_gen.core.errors import UsageError
from dialog_gen.shapes.files import ShapesSubset, write_files

ANSWERS = [{"answer": "red", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]


def published(count: int = 2, choices: int | None = 18) -> tuple[dict[str, Any], dict[str, Any]]:
    """Questions and annotations in the published layout, asked and annotated in opposite orders."""
    head = {"info": {"version": "1.0"}, "data_type": "mscoco", "data_subtype": "val2014", "license": {"name": "CC"}}
    asked: list[dict[str, Any]] = []
    annotated: list[dict[str, Any]] = []
    for number in range(count):
        ids = {"question_id": 10 * number + 7, "image_id": number}
        asked.append({**ids, "question": f"What colour is {number}?"})
        if choices is not None:
            asked[-1]["multiple_choices"] = [f"c{choice}" for choice in range(choices)]
        labels = {"question_type": "what colour", "answer_type": "other", "multiple_choice_answer": "red"}
        annotated.insert(0, {**ids, **labels, "answers": list(ANSWERS)})
    return {**head, "task_type": "X", "questions": asked}, {**head, "annotations": annotated}


def write(folder: Path, questions: Any, annotations: Any) -> tuple[Path, Path]:
    paths = folder / "questions.json", folder / "annotations.json"
    for path, content in zip(paths, (questions, annotations), strict=True):
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return paths


def test_published_layout(tmp_path: Path) -> None:
    items = load_vqa(*write(tmp_path, *published()))
    assert [item.question_id for item in items] == [7, 17]
    assert items[1] == VqaItem(
        question_id=17,
        image_id=1,
        question="What colour is 1?",
        question_type="what colour",
        answer_type="other",
        answer="red",
        answers=("red",) * 10,
        choices=tuple(f"c{choice}" for choice in range(18)),
    )
    assert {item.choices for item in load_vqa(*write(tmp_path, *published(choices=None)))} == {()}


def test_splits_with_the_same_ids(tmp_path: Path) -> None:
    questions, annotations = published()
    with pytest.raises(UsageError, match=r"of the split 'val2014'.*of 'test2015'"):
        load_vqa(*write(tmp_path, questions, {**annotations, "data_subtype": "test2015"}))
    del annotations["data_subtype"]
    assert len(load_vqa(*write(tmp_path, questions, annotations))) == 2


@pytest.mark.parametrize("prefix", ["MultipleChoice", "OpenEnded"])
def test_embedded_world(tmp_path: Path, prefix: str) -> None:
    write_files(tmp_path, ShapesSubset(split="val", seed=1, limit=40, shard_size=16))
    folder = tmp_path / "vqa"
    items = load_vqa(folder / f"{prefix}_shapes_val_questions.json", folder / "shapes_val_annotations.json")
    assert len(items) == 120
    assert sorted({item.image_id for item in items}) == list(range(40))
    assert {len(item.choices) for item in items} == {18 if prefix == "MultipleChoice" else 0}
    assert all(item.answer in item.choices for item in items if item.choices)
    assert {vqa_accuracy(item.answer, item.answers) for item in items} == {1}


def broken(choices: int | None = 18, **changes: Any) -> tuple[Any, Any]:
    """The published layout with a change to a question's or an annotation's field, or to a whole file."""
    questions, annotations = published(3, choices)
    for name, value in changes.items():
        where, _, field = name.partition("__")
        target = {"q": questions["questions"], "a": annotations["annotations"]}[where][1]
        if value is None:
            del target[field]
        else:
            target[field] = value
    return questions, annotations


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("{", published()[1]), r"questions\.json is not a VQA questions file: the file: Invalid JSON"),
        ((published()[0], "[]"), r"annotations\.json is not a VQA annotations file"),
        (published()[::-1], "questions: Field required.* swapped"),
        (published(0), r"questions\.json holds no questions"),
        ((published(1)[0], published(0)[1]), r"annotations\.json holds no questions"),
        (broken(q__question=None), r"questions\.1\.question: Field required"),
        (broken(a__answers="red"), r"annotations\.1\.answers: Input should be a valid array"),
        (
            broken(a__answers=[{"answer": 3}] * 10),
            r"annotations\.1\.answers\.0\.answer: Input should be a valid string",
        ),
        (broken(a__multiple_choice_answer=None), r"annotations\.1\.multiple_choice_answer: Field required"),
        ((published(3)[0], published(2)[1]), r"both have 2 questions, 1 only in .*questions\.json \(such as 27\)"),
        ((published(2)[0], published(3)[1]), r"both have 2 questions, 1 only in .*annotations\.json \(such as 27\)"),
        (broken(q__question_id=5, a__question_id=6), r"both have 2 questions, 1 only .*as 5\), 1 only .*as 6\)"),
        (broken(q__question_id=7), r"questions\.json holds question 7 twice"),
        (broken(a__question_id=7), r"annotations\.json holds question 7 twice"),
        (broken(q__image_id=5), "question 17 is about image 5 in .*questions.json, 1 in .*annotations.json"),
        (broken(q__multiple_choices=["red"] * 17), "question 17 has 17 multiple_choices, expected 18"),
        (published(2, choices=4), "question 7 has 4 multiple_choices, expected 18"),
        (broken(q__multiple_choices=[]), "question 17 has 0 multiple_choices"),
        (broken(q__multiple_choices=None), "some questions have multiple_choices, others, such as question 17, differ"),
        (broken(None, q__multiple_choices=["red"] * 18), "some questions have .* such as question 17, differ"),
        (broken(a__answers=ANSWERS[:9]), "question 17 has 9 answers, expected 10"),
    ],
)
def test_files_at_fault(tmp_path: Path, files: tuple[Any, Any], message: str) -> None:
    paths = write(tmp_path, *files)
    with pytest.raises(UsageError, match=message) as caught:
        load_vqa(*paths)
    assert isinstance(caught.value, ValueError)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.json cannot be read: No such file"):
        load_vqa(tmp_path / "nowhere.json", tmp_path / "annotations.json")
