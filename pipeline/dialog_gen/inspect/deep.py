"""Verifies a dataset; a deep verification decodes every image, too."""

import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dialog_gen.core.mapping import Map
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.record import stored_images
from dialog_gen.dataset.shard_check import CheckImages
from dialog_gen.dataset.verify import Verdict
from dialog_gen.dataset.verify import verify as verify_dataset
from dialog_gen.executors.base import Where
from dialog_gen.sources.images import UNREADABLE_REASONS, UnreadableImage, decode_image


def verify(
    dataset: str | Path | DatasetFolder,
    *,
    deep: bool = False,
    executor: str = "local",
    ray_address: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Verdict:
    """Checks checksums, schema, counts, unique ids and image hashes, and that every file belongs to a finished shard.

    With `deep`, every image is decoded, on all cores: an image of an accepted or rejected row must decode, and that of
    an unreadable row must fail for the recorded reason. `executor` decides where shards are read. The dataset may be
    written to meanwhile; its unfinished files are left out. Raises UsageError only if there is no dataset, if its
    configuration cannot be read, or if there is no such executor; OSError if the folder for temporary files is full.
    """
    folder = open_dataset(dataset)
    return verify_by(Where(executor, ray_address).map(), folder, deep=deep, on_progress=on_progress)


def verify_by(
    map_shards: Map, folder: DatasetFolder, *, deep: bool = False, on_progress: OnProgress = ignore_progress
) -> Verdict:
    """Does the work of `verify`, where `map_shards` works on shards."""
    with image_check(deep) as check_images:
        return verify_dataset(folder, check_images=check_images, on_progress=on_progress, map_shards=map_shards)


_STORED_AS = {"missing_file": "empty_file"}
"""What is found in the place of an image that was not there to be stored."""


class _ImageCheck:
    """Checks images by `image_problem`, on several cores: decoders release the interpreter's lock."""

    def __init__(self, threads: int | None) -> None:
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Iterable[str | None]:
        return self.pool.map(image_problem, rows)

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process, which has a core of its own.
        return _ImageCheck, (1,)


@contextmanager
def image_check(deep: bool) -> Generator[CheckImages | None]:
    """The check of images for a `deep` verification, by `image_problem` on all cores; None for another one."""
    if not deep:
        yield None
        return
    check = _ImageCheck(os.cpu_count())
    with check.pool:
        yield check


def image_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with the images of a row, by decoding them; None if nothing is, or if the row has no image."""
    stored = stored_images(row)
    if not stored:
        return None
    found = None
    try:
        for data in stored:
            decode_image(data)
    except UnreadableImage as error:
        found = error.reason
    # Other reasons are not those of decoding.
    recorded = row["reason"] if row.get("status") == "unreadable" else None
    if found == _STORED_AS.get(recorded or "", recorded) or (
        recorded is not None and recorded not in UNREADABLE_REASONS
    ):
        return None
    is_now = f"cannot be decoded ({found})" if found else "can be decoded"
    return f"its image {is_now}; recorded: {recorded or 'readable'}"
