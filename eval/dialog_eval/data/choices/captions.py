"""Items in the plainest form, for benchmarks of one's own: an image, and captions of which the first is right.

A list of {image_id, captions, kind}: `image_id` is the image's id or file name, `kind` its part of the benchmark.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, ImagePart, check_choice, every_part
from dialog_eval.data.records import read_records


class _Item(TypedDict):
    image_id: str
    captions: list[str]
    kind: NotRequired[str]


def _read(files: Sequence[Path]) -> list[ChoiceItem]:
    items: list[ChoiceItem] = []
    for path in files:
        for number, record in enumerate(read_records(path, _Item, "captions to choose from"), 1):
            texts = tuple(record["captions"])
            check_choice(texts, path, number)
            items.append(ChoiceItem(images=(ImagePart(record["image_id"]),), texts=texts, part=record.get("kind", "")))
    return items


BENCHMARKS.register("captions")(
    Benchmark(title="choice of captions", read=_read, suffixes=(".json", ".jsonl"), averaged=every_part)
)
