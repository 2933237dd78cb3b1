"""The images of an evaluation, in any source that the pipeline reads (`dialog_gen.sources.base.open_source`).

VQAv1 and COCO identify an image by an integer. If a COCO file lists the images, its `file_name` is matched with the ids
in the index, without extensions: first the whole name, then the last component of its path. Without such a list, the
integer is taken from the digits at the end of an id: COCO_val2014_000000000042 is image 42.

A benchmark about parts of images asks for an id of each part (`crop`); the part is then an image of its own.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_images
from dialog_gen.sources.base import SourceImage, open_source
from dialog_gen.sources.images import IMAGE_EXTENSIONS

_SHARD_SIZE = 1024
_SHOWN_IDS = 3
_SHOWN_CHARACTERS = 200

_Key = TypeVar("_Key", int, str)

Box = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in pixels."""


class ImageIndex:
    """The ids of a source's images. The ids are listed immediately; the images are read on demand."""

    def __init__(self, spec: str) -> None:
        """Lists the source. Raises UsageError if it has no images, and for sources that `open_source` refuses."""
        self.spec = spec
        self._shards = list(open_source(spec, shard_size=_SHARD_SIZE))
        self.image_ids = [image_id for shard in self._shards for image_id in shard.image_ids()]
        self.boxes: dict[str, Box] = {}
        """Id of a part of an image -> the part."""
        self.sha256s: dict[str, str] = {}
        """Id of an image that was read -> SHA-256 of its bytes."""
        self._parts_of = defaultdict[str, set[str]](set)

    def by_file_name(self, file_names: Mapping[_Key, str], *, each_once: bool = False) -> dict[_Key, str]:
        """The index's id of each image, found by its file name.

        Raises UsageError, naming some of the images, if images are missing or several images match a name; with
        `each_once`, also if one image matches several names.
        """
        whole, last = _by(self.image_ids, _stem), _by(self.image_ids, _last)

        def candidates(key: _Key) -> list[str]:
            name = file_names[key]
            return whole.get(_stem(name)) or last.get(_last(name), [])

        chosen = self._choose(file_names, candidates, lambda key: repr(file_names[key]), "Is it the right folder?")
        first: dict[str, _Key] = {}
        for key, image_id in chosen.items() if each_once else ():
            if (other := first.setdefault(image_id, key)) != key:
                names = " and ".join(dict.fromkeys((repr(file_names[other]), repr(file_names[key]))))
                raise UsageError(f"image {image_id} of {self.spec} is listed twice, as {names}: list each image once.")
        return chosen

    def by_number(self, numbers: Iterable[int]) -> dict[int, str]:
        """The index's id of each image, found by its integer id. Raises UsageError as `by_file_name` does."""
        known = _by(self.image_ids, _number)
        advice = "The number is looked for at the end of each image's id: give a COCO file that lists the images."
        return self._choose(numbers, lambda number: known.get(number, []), str, advice)

    def crop(self, image_id: str, box: Box) -> str:
        """The id of a part of an image; the same part has the same id."""
        part = f"{image_id} [{','.join(map(str, box))}]"
        self.boxes[part] = box
        self._parts_of[image_id].add(part)
        return part

    def read(self, image_ids: set[str]) -> Iterator[SourceImage]:
        """Reads the given images and parts, in the source's order; a part has the data of its whole image."""
        parts_of = {whole: wanted for whole, parts in self._parts_of.items() if (wanted := sorted(parts & image_ids))}
        wholes = image_ids | parts_of.keys()
        for shard in self._shards:
            if wholes.isdisjoint(shard.image_ids()):
                continue
            for image in shard.only(wholes).read():
                self.sha256s[image.image_id] = sha256_images([image.data])
                if image.image_id in image_ids:
                    yield image
                yield from (replace(image, image_id=part) for part in parts_of.get(image.image_id, ()))

    def _choose(
        self, keys: Iterable[_Key], candidates: Callable[[_Key], list[str]], show: Callable[[_Key], str], advice: str
    ) -> dict[_Key, str]:
        chosen, missing, ambiguous = dict[_Key, str](), list[str](), list[str]()
        for key in keys:
            found = candidates(key)
            if not found:
                missing.append(show(key))
            elif len(found) > 1:
                ambiguous.append(f"{show(key)} ({found[0]} or {found[1]})")
            else:
                chosen[key] = found[0]
        if missing:
            there = ", ".join(self.image_ids[:_SHOWN_IDS])
            raise UsageError(f"{self.spec} lacks {_some(missing)}; it has such as {there}. {advice}")
        if ambiguous:
            raise UsageError(f"{self.spec} leaves open which image is meant by {_some(ambiguous)}. {advice}")
        return chosen


def _by(image_ids: Iterable[str], key_of: Callable[[str], _Key | None]) -> dict[_Key, list[str]]:
    found = defaultdict[_Key, list[str]](list)
    for image_id in image_ids:
        key = key_of(image_id)
        if key is not None:
            found[key].append(image_id)
    return found


def _stem(name: str) -> str:
    stem, dot, extension = name.rpartition(".")
    return stem if dot and extension.lower() in IMAGE_EXTENSIONS else name


def _last(name: str) -> str:
    return _stem(name).rpartition("/")[2]


def _number(image_id: str) -> int | None:
    digits = re.search(r"[0-9]+$", _stem(image_id))
    return int(digits[0]) if digits else None


def _some(names: list[str]) -> str:
    names = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names]
    more = f" and {len(names) - _SHOWN_IDS} more" if len(names) > _SHOWN_IDS else ""
    return f"{len(names)} images: {', '.join(names[:_SHOWN_IDS])}{more}" if len(names) > 1 else f"image {names[0]}"
