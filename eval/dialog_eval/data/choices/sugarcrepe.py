"""SugarCrepe (arXiv 2306.14610) and SugarCrepe++ (arXiv 2406.11171), on the images of COCO's val2017.

SugarCrepe: github.com/RAIVNLab/sugar-crepe, data/*.json: an object of number -> {filename, caption,
negative_caption}; `main_eval.py` there counts an item whose caption scores above its negative.

SugarCrepe++: github.com/Sri-Harsha/scpp, data/*.json: a list of {filename, caption, caption2, negative_caption};
`VLMs/test_Variants_CLIP.py` there counts, in the image-text task, items whose captions both score above the negative,
and, in the text-only task, items whose captions are nearer to each other than either is to the negative.

The parts are the files: swap_att, replace_obj and so on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, ImagePart, every_part
from dialog_eval.data.records import read_records
from dialog_gen.core.errors import UsageError


class _Captions(TypedDict):
    filename: str
    caption: str
    negative_caption: str


class _Pair(_Captions):
    caption2: NotRequired[str]  # in a file of the other benchmark


class _Triplet(_Captions):
    caption2: str


def _read_pairs(files: Sequence[Path]) -> list[ChoiceItem]:
    items: list[ChoiceItem] = []
    for path in files:
        for number, record in enumerate(read_records(path, _Pair, "SugarCrepe"), 1):
            if "caption2" in record:
                raise UsageError(f"{path}: record {number} has a caption2: it is of --benchmark sugarcrepe-pp.")
            texts = record["caption"], record["negative_caption"]
            items.append(ChoiceItem(images=(ImagePart(record["filename"]),), texts=texts, part=path.stem))
    return items


def _read_triplets(files: Sequence[Path]) -> list[ChoiceItem]:
    return [
        ChoiceItem(
            images=(ImagePart(record["filename"]),),
            texts=(record["caption"], record["caption2"], record["negative_caption"]),
            right=2,
            part=path.stem,
        )
        for path in files
        for record in read_records(path, _Triplet, "SugarCrepe++")
    ]


BENCHMARKS.register("sugarcrepe")(
    Benchmark(
        title="SugarCrepe",
        read=_read_pairs,
        suffixes=(".json",),
        averaged=every_part,
        published_as="data/*.json of sugar-crepe",
    )
)
BENCHMARKS.register("sugarcrepe-pp")(
    Benchmark(
        title="SugarCrepe++",
        read=_read_triplets,
        suffixes=(".json", ".jsonl"),
        measures={"accuracy": "choice", "texts alone": "texts_alone"},
        averaged=every_part,
        published_as="data/*.json of scpp",
    )
)
