"""The multiple choices of NegBench (arXiv 2501.09425): four captions that affirm and deny, one of which is true.

github.com/m1k2zoo/negbench, data/images/*_mcq_*.csv: image_path, caption_0 to caption_3, correct_answer (0 to 3) and
correct_answer_template ("positive", "negative" or "hybrid"), which are the parts; the binary files have two captions
and no template. `benchmarks/src/evaluation/mcq.py` there counts the most similar caption.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, ImagePart, check_choice
from dialog_eval.data.records import read_records
from dialog_gen.core.errors import UsageError

_WHAT = "NegBench's multiple choices"


class _Question(TypedDict):
    image_path: str
    caption_0: str
    caption_1: str
    caption_2: NotRequired[str]
    caption_3: NotRequired[str]
    correct_answer: int
    correct_answer_template: NotRequired[str]


def _read(files: Sequence[Path]) -> list[ChoiceItem]:
    return [
        _item(record, path, number)
        for path in files
        for number, record in enumerate(read_records(path, _Question, _WHAT), 1)
    ]


def _item(record: _Question, path: Path, number: int) -> ChoiceItem:
    captions = [record["caption_0"], record["caption_1"], record.get("caption_2"), record.get("caption_3")]
    right = record["correct_answer"]
    if not 0 <= right < len(captions) or not (own := captions[right]):
        raise UsageError(f"{path} is not a file of {_WHAT}: record {number}: correct_answer is {right}.")
    texts = (own, *(caption for place, caption in enumerate(captions) if place != right and caption))
    check_choice(texts, path, number)
    part = record.get("correct_answer_template") or ""
    return ChoiceItem(images=(ImagePart(record["image_path"]),), texts=texts, part=part)


BENCHMARKS.register("negbench-mcq")(
    Benchmark(title="NegBench MCQ", read=_read, suffixes=(".csv",), published_as="data/images/*_mcq_*.csv of negbench")
)
