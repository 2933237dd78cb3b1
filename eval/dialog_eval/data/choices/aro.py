"""ARO (arXiv 2210.01936): relations and attributes in parts of Visual Genome's images, and the order of words.

github.com/mertyg/vision-language-models-are-bows, dataset_zoo/aro_datasets.py:

- visual_genome_relation.json, visual_genome_attribution.json: a list of {image_path, bbox_x, bbox_y, bbox_w, bbox_h,
  true_caption, false_caption, relation_name or attributes}; the image is cut to the box. The published figures are
  means over relations, without those that are symmetric or too vague to turn round, and over pairs of attributes with
  at least 25 items (main_aro.py): the measure "mean over parts".
- COCO and Flickr30k order: a caption against four shuffles of its words, of which two need a part-of-speech tagger.
  "aro-order" reads the items of that code's `COCO_Order.test_cases` saved as JSON: {image, caption_options}, the first
  of which is right. "aro-trigrams" reads the captions themselves, such as coco_karpathy_test.json and
  flickr30k_test.json: {image, caption: [...]}, and makes the two shuffles of trigrams: their order, and the words in
  each. Its figures are not the published ones.
"""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.choices.base import BENCHMARKS, Benchmark, ChoiceItem, ImagePart
from dialog_eval.data.records import read_records
from dialog_gen.core.errors import UsageError
from dialog_gen.sources.images import DEFAULT_MAX_PIXELS

_LEAST_ITEMS = 25
_MOST_WORDS = 30
_LEFT_OUT = """
    adjusting; around; attached to; beside; between; bigger than; biting; boarding; brushing; by; chewing; cleaning;
    climbing; close to; coming from, out of; contain; crossing; dragging; draped over; drinking, from; driving, down,
    on; eating from, in; enclosing; exiting; facing; filled with; floating in, on; flying, above, in, over, through;
    full of; going down, into, through; grazing in; growing in, on; guiding; hanging from, in, off, over; higher than;
    holding onto; hugging; in between; jumping off, on, over; kept in; larger than; leading; leaning over; leaving;
    licking; longer than; looking in, into, out, over, through; lying next to, on top of; making; mixed with;
    mounted on; moving; near; next to; of; on the back of; on the edge of; on the front of; on the other side of;
    on the side of; opening; painted on; parked at, beside, by, in, in front of, near, next to; perched on; petting;
    piled on; playing, in, on, with; pouring; reaching for; reading; reflected on; riding on; running in, on, through;
    seen through; sitting behind, beside, by, in front of, near, next to, under; skiing down, on; sleeping in, on;
    smiling at; sniffing; splashing; sprinkled on; stacked on; standing against, around, behind, beside, in front of,
    near, next to; staring at; stuck in; surrounding; swimming in; swinging; talking to; topped with; touching;
    traveling down, on; tying; typing on; underneath; wading in; waiting for; walking across, by, down, next to,
    through; with; working in, on; worn on; wrapped around, in
"""


def _relations(listed: str) -> frozenset[str]:
    """Splits a list: sitting by, near; of -> "sitting by", "sitting near", "of"."""
    names: set[str] = set()
    for group in " ".join(listed.split()).split("; "):
        first, *others = group.split(", ")
        names |= {first, *(f"{first.split()[0]} {other}" for other in others)}
    return frozenset(names)


NOT_AVERAGED = _relations(_LEFT_OUT)
"""Relations that the published mean leaves out (`symmetric` in main_aro.py)."""


class _Region(TypedDict):
    image_path: str
    bbox_x: float
    bbox_y: float
    bbox_w: float
    bbox_h: float
    true_caption: str
    false_caption: str
    relation_name: NotRequired[str]
    attributes: NotRequired[list[str]]


class _Options(TypedDict):
    image: str
    caption_options: list[str]


class _Captions(TypedDict):
    image: str
    caption: list[str]


def _reader_of_regions(what: str, part_of: Callable[[_Region], str | None]) -> Callable[..., list[ChoiceItem]]:
    def read(files: Sequence[Path]) -> list[ChoiceItem]:
        items: list[ChoiceItem] = []
        for path in files:
            for number, record in enumerate(read_records(path, _Region, what), 1):
                part = part_of(record)
                if part is None:
                    raise UsageError(f"{path} is not a file of {what}: record {number} has no {what.split()[-1]}.")
                if not (record["bbox_w"] >= 1 and record["bbox_h"] >= 1):
                    raise UsageError(f"{path} is not a file of {what}: the box of record {number} is empty.")
                if record["bbox_w"] * record["bbox_h"] > DEFAULT_MAX_PIXELS:
                    raise UsageError(f"{path}: the box of record {number} is larger than any image that is read.")
                if not (abs(record["bbox_x"]) < DEFAULT_MAX_PIXELS and abs(record["bbox_y"]) < DEFAULT_MAX_PIXELS):
                    raise UsageError(f"{path}: the box of record {number} lies outside of any image that is read.")
                items.append(_region(record, part))
        return items

    return read


def _region(record: _Region, part: str) -> ChoiceItem:
    left, top = int(record["bbox_x"]), int(record["bbox_y"])
    box = left, top, left + int(record["bbox_w"]), top + int(record["bbox_h"])
    return ChoiceItem(
        images=(ImagePart(record["image_path"], box),),
        texts=(record["true_caption"], record["false_caption"]),
        part=part,
    )


def _attributes(record: _Region) -> str | None:
    attributes = record.get("attributes")
    return "_".join(attributes[:2]) if attributes else None


def _not_left_out(sizes: Mapping[str, int]) -> set[str]:
    return set(sizes) - NOT_AVERAGED


def _frequent(sizes: Mapping[str, int]) -> set[str]:
    return {part for part, items in sizes.items() if items >= _LEAST_ITEMS}


def _read_options(files: Sequence[Path]) -> list[ChoiceItem]:
    records = (record for path in files for record in read_records(path, _Options, "ARO order"))
    return _orders((record["image"], record["caption_options"]) for record in records)


def _read_captions(files: Sequence[Path]) -> list[ChoiceItem]:
    records = (record for path in files for record in read_records(path, _Captions, "ARO order"))
    return _orders((record["image"], with_shuffles(caption)) for record in records for caption in record["caption"])


def _orders(options: Iterable[tuple[str, Sequence[str]]]) -> list[ChoiceItem]:
    """The items of (image, texts with the caption first).

    A shuffle that gave the caption again is left out, and so is a caption without another shuffle; ARO's code counts
    them as right because the caption is the first maximum.
    """
    distinct = ((image, tuple(dict.fromkeys(texts))) for image, texts in options)
    return [ChoiceItem(images=(ImagePart(image),), texts=texts) for image, texts in distinct if len(texts) > 1]


def with_shuffles(caption: str) -> list[str]:
    """The caption in lower case without punctuation, and two shuffles of its trigrams: always the same two."""
    words = re.sub(r"[^\w\s'-]", " ", caption.lower()).split()[:_MOST_WORDS]
    trigrams = [words[start : start + 3] for start in range(0, len(words), 3)]
    rng = random.Random(" ".join(words))
    within = [rng.sample(trigram, len(trigram)) for trigram in trigrams]
    order = rng.sample(trigrams, len(trigrams))
    return [" ".join(word for trigram in some for word in trigram) for some in (trigrams, within, order)]


BENCHMARKS.register("aro-relation")(
    Benchmark(
        title="ARO relation",
        read=_reader_of_regions("ARO relation", lambda record: record.get("relation_name")),
        suffixes=(".json",),
        shows_parts=False,
        averaged=_not_left_out,
        published_as="visual_genome_relation.json",
    )
)
BENCHMARKS.register("aro-attribution")(
    Benchmark(
        title="ARO attribution",
        read=_reader_of_regions("ARO attributes", _attributes),
        suffixes=(".json",),
        shows_parts=False,
        averaged=_frequent,
        published_as="visual_genome_attribution.json",
    )
)
BENCHMARKS.register("aro-order")(
    Benchmark(
        title="ARO order",
        read=_read_options,
        suffixes=(".json",),
        published_as="the `test_cases` of ARO's COCO_Order or Flickr30k_Order, saved as JSON",
    )
)
BENCHMARKS.register("aro-trigrams")(
    Benchmark(
        title="order of trigrams",
        read=_read_captions,
        suffixes=(".json",),
        shows_parts=False,
        published_as="coco_karpathy_test.json or flickr30k_test.json",
    )
)
