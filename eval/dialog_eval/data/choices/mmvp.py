"""MMVP-VLM (arXiv 2401.06209): pairs of images that CLIP confuses, with one statement each.

huggingface.co/datasets/MMVP/MMVP_VLM: the columns of Questions.csv, after one line with their names, are the number of
an image, its type and its statement; the two rows of a pair are next to each other. The images are
MLLM_VLM Images/TYPE/NUMBER.jpg. `scripts/evaluate_vlm.py` of github.com/tsb0601/MMVP asks with "a photo of " before the
statement, and counts a pair if each statement's own image scores higher. The parts are the nine types.
"""

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, ImagePart, every_part
from dialog_eval.data.records import read_records
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of

_BEFORE = "a photo of "


class _Row(TypedDict):
    number: int
    type: str
    statement: str


def _read(files: Sequence[Path]) -> list[ChoiceItem]:
    items: list[ChoiceItem] = []
    for path in files:
        rows = read_records(path, _Row, "MMVP-VLM", columns=tuple(_Row.__annotations__))
        if len(rows) % 2:
            raise UsageError(f"{path} has {count_of(len(rows), 'row')}: those of MMVP-VLM come in pairs.")
        for pair in zip(rows[::2], rows[1::2], strict=True):
            if pair[0]["type"] != pair[1]["type"]:
                raise UsageError(f"{path}: {pair[0]['number']} and {pair[1]['number']} are a pair, but of two types.")
            items.append(
                ChoiceItem(
                    images=tuple(ImagePart(f"{row['type']}/{row['number']}.jpg") for row in pair),
                    texts=tuple(_BEFORE + row["statement"] for row in pair),
                    part=pair[0]["type"],
                )
            )
    return items


BENCHMARKS.register("mmvp-vlm")(
    Benchmark(
        title="MMVP-VLM",
        read=_read,
        suffixes=(".csv",),
        measures={"pair accuracy": "image_score"},
        averaged=every_part,
        published_as="Questions.csv of MMVP_VLM",
    )
)
