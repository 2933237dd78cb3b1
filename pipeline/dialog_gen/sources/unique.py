"""Ids are unique in a whole source: checked before any work is done, with bounded memory.

A part of a source that makes its ids itself (a tar: its path and the keys in it) needs no check unless its prefix is
the beginning of another part's prefix: `a.tar` may contain `b/c.jpg`, and `a/b.tar` may contain `c.jpg`. Ids that come
from data are read in full, without the images: 100 million ids take 0.8 GB in the system's temporary folder.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise

from dialog_gen.core.duplicates import DuplicateFinder
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import hash_64
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.sources.base import ImageReference, Source, SourcePart, references_of

_SUSPECTS_CONFIRMED = 1000
_IDS_PER_REPORT = 1 << 16


def check_unique_ids(
    spec: str, *, limit: int | None = None, prefix_ids: bool = False, on_progress: OnProgress = ignore_progress
) -> None:
    """Checks the ids of a source, or those of its first `limit` images, and the names of its shards.

    Raises UsageError if two images have one id; it names the id and both places.
    """
    parts = list(Source.of(spec).parts)
    names = {part.shard_name(0).casefold(): part for part in parts}
    if len(names) < len(parts):
        first = next(part for part in parts if names[part.shard_name(0).casefold()] is not part)
        raise UsageError(f"two parts of {spec} would have the shard name {first.shard_name(0)!r}: rename one of them.")
    suspected = _suspected(parts)
    with DuplicateFinder() as finder:
        for done, (image_id, _, _) in enumerate(_ids(suspected, prefix_ids, limit), 1):
            finder.add((image_id,))
            if done % _IDS_PER_REPORT == 0:
                on_progress("checking that ids are unique", done, None, "ids", "")
        hashes = finder.suspects(_SUSPECTS_CONFIRMED)
    if not hashes:
        return
    seen = dict[str, tuple[SourcePart, int]]()
    for image_id, part, number in _ids(suspected, prefix_ids, limit):
        if hash_64(image_id) in hashes:
            if image_id in seen:
                raise UsageError(_message(image_id, seen[image_id], (part, number), prefix_ids))
            seen[image_id] = part, number


def _suspected(parts: Sequence[SourcePart]) -> list[SourcePart]:
    """The parts whose ids may have duplicates."""
    prefixes = {part.id_prefix() for part in parts}
    if None in prefixes:
        return list(parts)
    known = sorted(prefix for prefix in prefixes if prefix is not None)
    # All prefixes that begin with a prefix follow it directly in the order.
    outer = {prefix for prefix, following in pairwise(known) if following.startswith(prefix)}
    suspected = set[str | None]()
    for part in parts:
        if (own := part.id_prefix()) in outer:
            for reference in _references(part):
                inside = {f"{folder}/" for folder in _folders(reference.image_id)} & prefixes - {own}
                suspected |= inside and inside | {own}
    return [part for part in parts if part.id_prefix() in suspected]


def _folders(image_id: str) -> Iterator[str]:
    while "/" in image_id:
        image_id = image_id.rpartition("/")[0]
        yield image_id


def _references(part: SourcePart, prefix_ids: bool = False) -> Iterator[ImageReference]:
    return (item for item in references_of(part, prefix_ids) if isinstance(item, ImageReference))


def _ids(parts: Sequence[SourcePart], prefix_ids: bool, limit: int | None) -> Iterator[tuple[str, SourcePart, int]]:
    """Each id, its part, and its number in the part."""
    ids = chain.from_iterable(
        ((reference.image_id, part, number) for number, reference in enumerate(_references(part, prefix_ids)))
        for part in parts
    )
    return islice(ids, limit)


def _message(image_id: str, first: tuple[SourcePart, int], second: tuple[SourcePart, int], prefix_ids: bool) -> str:
    places = " and ".join(f"image {number} of {_address(part)}" for part, number in (first, second))
    if first[0].id_prefix() is not None and second[0].id_prefix() is not None:
        remedy = "The path of each file is already in its ids: rename one of the files, or its folder."
    elif first[0] is second[0] or prefix_ids:
        remedy = "Make the ids unique, or remove their column: then the path and the row number are the id."
    else:
        remedy = "With --prefix-ids, the path of its file is put before each id."
    return f"{places} (counted from 0) have the same id {image_id!r}; ids must be unique in a dataset. {remedy}"


def _address(part: SourcePart) -> str:
    identity = part.identity()
    return str(identity[0] if isinstance(identity, tuple) else identity)
