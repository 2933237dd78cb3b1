"""Winoground (arXiv 2204.03162): two images and two captions of the same words in another order.

huggingface.co/datasets/facebook/winoground, data/examples.jsonl: {image_0, image_1, caption_0, caption_1,
collapsed_tag, ...}; the images are data/images.zip, named by image_0 and image_1. An item passes the text score if each
image's own caption scores higher, the image score if each caption's own image does, and the group score if both hold.
The parts are the tags: Object, Relation, Both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, ImagePart
from dialog_eval.data.records import read_records


class _Example(TypedDict):
    image_0: str
    image_1: str
    caption_0: str
    caption_1: str
    collapsed_tag: NotRequired[str]


def _read(files: Sequence[Path]) -> list[ChoiceItem]:
    return [
        ChoiceItem(
            images=(ImagePart(record["image_0"]), ImagePart(record["image_1"])),
            texts=(record["caption_0"], record["caption_1"]),
            part=record.get("collapsed_tag", ""),
        )
        for path in files
        for record in read_records(path, _Example, "Winoground")
    ]


BENCHMARKS.register("winoground")(
    Benchmark(
        title="Winoground",
        read=_read,
        suffixes=(".jsonl", ".json"),
        published_as="data/examples.jsonl",
        measures={"group score": "group_score", "text score": "text_score", "image score": "image_score"},
    )
)
