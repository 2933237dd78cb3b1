"""VALSE (arXiv 2112.07566): a caption against a foil, in one file per phenomenon.

github.com/Heidelberg-NLP/VALSE, data/*.json: an object of id -> {image_file, caption, foil, mturk: {caption}, ...}.
Only items for which at least two of three annotators chose the caption, and not the foil, are valid; the evaluations
there use only those. The measure is their pairwise accuracy acc_r. The parts are the files; the paper's average is over
these.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, ImagePart, every_part
from dialog_eval.data.records import read_records
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of

_VOTES_FOR_VALID = 2
_log = logging.getLogger(__name__)


class _Votes(TypedDict):
    caption: int


class _Foil(TypedDict):
    image_file: str
    caption: str | list[str]
    foil: str
    mturk: _Votes


def _read(files: Sequence[Path]) -> list[ChoiceItem]:
    items: list[ChoiceItem] = []
    for path in files:
        chosen = [
            record for record in read_records(path, _Foil, "VALSE") if record["mturk"]["caption"] >= _VOTES_FOR_VALID
        ]
        valid = [record for record in chosen if record["caption"]]
        if without := len(chosen) - len(valid):
            _log.warning("%s: left out %s without a caption", path, count_of(without, "valid item"))
        if not valid:
            raise UsageError(f"{path} has no item that {_VOTES_FOR_VALID} of its annotators found valid.")
        items += [
            ChoiceItem(
                images=(ImagePart(record["image_file"]),), texts=(_caption(record), record["foil"]), part=path.stem
            )
            for record in valid
        ]
    return items


def _caption(record: _Foil) -> str:
    """Some files have the caption in a list."""
    return record["caption"] if isinstance(record["caption"], str) else record["caption"][0]


BENCHMARKS.register("valse")(
    Benchmark(title="VALSE", read=_read, suffixes=(".json",), averaged=every_part, published_as="data/*.json of VALSE")
)
