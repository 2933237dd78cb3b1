"""Downloads the embedded world in the way other image sets are downloaded: from URLs, with img2dataset, into tars.

A server on loopback renders each image on request. The tars of img2dataset depend on the order in which images arrive,
the clock and the server's port. They are rewritten without these, so that the same arguments give the same bytes.
"""

import io
import json
import re
import sys
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import replacing, write_json, writing
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.download.folder import KEPT, begin, finish, is_complete, locked, read_json
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.img2dataset.supervisor import (
    LOG_NAME,
    download_list,
    finished_shards,
    outcomes_of,
    require_img2dataset,
)
from dialog_gen.download.manifests import DownloadOptions
from dialog_gen.download.url_lists import SCHEMA, ImagesSummary
from dialog_gen.shapes.files import ANNOTATIONS, ShapesSubset, write_files
from dialog_gen.shapes.worlds import FIRST, World

_HOST = "127.0.0.1"
_STATS_KEPT = ("count", "successes", "failed_to_download", "failed_to_resize", "status_dict")
_URL_BATCH = 8192
_POLL_S = 0.1


def download_shapes(
    out: Path,
    *,
    split: str,
    seed: int,
    limit: int,
    shard_size: int = 1024,
    world: World[Any] = FIRST,
    on_progress: OnProgress = ignore_progress,
) -> ImagesSummary:
    """Downloads the first `limit` images of a split into `out`/images and writes the annotations next to them.

    An interrupted download continues where it stopped. A complete download (`out`/download.json exists) is left
    unchanged, except that missing annotations, which an earlier version did not write, are added.

    Raises UsageError for a limit or shard size below 1 or if `out` contains something else, MissingExtraError if
    img2dataset is not installed, FailedCheckError if an image could not be downloaded.
    """
    for name, value in (("limit", limit), ("shard size", shard_size)):
        if value < 1:
            raise UsageError(f"the {name} must be at least 1, got {value}")
    subset = ShapesSubset(split=split, seed=seed, limit=limit, shard_size=shard_size, world=world)
    request = {"manifest": world.name, "split": split, "seed": seed, "limit": limit, "shard_size": shard_size}
    with writing(out, left=KEPT), locked(out):
        complete = is_complete(out, request, ("images", *ANNOTATIONS))
        if not complete:
            require_img2dataset()
            _download(out, subset, request, on_progress)
        elif not all((out / name).exists() for name in ANNOTATIONS):
            write_files(out, subset)
    return ImagesSummary(out=out, images=limit, shards=len(subset.shards()), already_complete=complete)


def _download(out: Path, subset: ShapesSubset, request: dict[str, Any], on_progress: OnProgress) -> None:
    work, shards = begin(out, request), subset.shards()
    images = work / "images"
    # Shards that lack images are downloaded again.
    for name in set(shards) - _whole(images):
        (images / f"{name}_stats.json").unlink(missing_ok=True)
    options = DownloadOptions(
        policy=FetchPolicy(allow_loopback=True),
        shard_size=subset.shard_size,
        processes=min(2, len(shards)),
        threads=16,
    )
    with _Server(subset.world) as server:
        _write_urls(work / "urls", subset, server.server_port)
        download_list(work, options, f"downloading {subset.world.name}", on_progress)
    _check(work, subset)
    for name, scenes in shards.items():
        _normalise(images, name, [subset.url(index) for index in scenes])
    write_files(out, subset)
    finish(out, request, images=subset.limit, shards=len(shards))


class _Server(ThreadingHTTPServer):
    """A context manager that serves a world's images as /{split}/{seed}/{index}.png on a free port."""

    # Every thread of img2dataset opens a connection for each image.
    request_queue_size = 128

    def __init__(self, world: World[Any]) -> None:
        super().__init__((_HOST, 0), _Handler)
        self.world = world

    def __enter__(self) -> "_Server":
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A closed connection means that the client was killed, which is not an error of the server.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        world = cast("_Server", self.server).world
        match = re.fullmatch(rf"/({'|'.join(world.splits)})/(-?\d+)/(\d+)\.png", self.path)
        if not match:
            self.send_error(404)
            return
        png = world.render_png(world.draw_scene(match[1], int(match[2]), int(match[3])))
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(png)))
        self.end_headers()
        self.wfile.write(png)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as the base class names it)
        pass


def _write_urls(folder: Path, subset: ShapesSubset, port: int) -> None:
    folder.mkdir(exist_ok=True)
    with pq.ParquetWriter(folder / "00000.parquet", SCHEMA) as writer:
        for start in range(0, subset.limit, _URL_BATCH):
            batch = range(start, min(start + _URL_BATCH, subset.limit))
            urls = [f"http://{_HOST}:{port}/{subset.split}/{subset.seed}/{i}.png" for i in batch]
            captions = [subset.caption(i) for i in batch]
            writer.write_table(pa.table({"url": urls, "caption": captions}, SCHEMA))


def _check(work: Path, subset: ShapesSubset) -> None:
    """Raises FailedCheckError, with the counts of outcomes, unless every image was downloaded."""
    outcomes: Counter[str] = Counter()
    for stats in finished_shards(work / "images").values():
        outcomes += Counter(outcomes_of(stats))
    succeeded = outcomes.pop("success", 0)
    if succeeded < subset.limit:
        listed = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes.most_common(3))
        raise FailedCheckError(
            f"downloaded: {succeeded} of {count_of(subset.limit, 'image')}, missing: {subset.limit - succeeded} "
            f"({listed}); "
            f"img2dataset's log is {work / LOG_NAME}; run again to fetch the rest"
        )


def _whole(images: Path) -> set[str]:
    """The names of the finished shards in which no image is missing."""
    return {name for name, stats in finished_shards(images).items() if set(outcomes_of(stats)) == {"success"}}


def _normalise(images: Path, name: str, urls: list[str]) -> None:
    """Rewrites a shard so that its bytes depend only on its content."""
    with tarfile.open(images / f"{name}.tar") as tar:
        content = {member.name: cast("Any", tar.extractfile(member)).read() for member in tar}
    keys = sorted(member.removesuffix(".json") for member in content if member.endswith(".json"))
    for key, url in zip(keys, urls, strict=True):
        metadata = {**json.loads(content[f"{key}.json"]), "url": url}
        content[f"{key}.json"] = json.dumps(metadata, indent=4).encode()
    with replacing(images / f"{name}.tar") as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member in sorted(content):
            # A new TarInfo has no times and no owner.
            header = tarfile.TarInfo(member)
            header.size = len(content[member])
            tar.addfile(header, io.BytesIO(content[member]))
    stats = read_json(images / f"{name}_stats.json") or {}
    write_json(images / f"{name}_stats.json", {key: stats[key] for key in _STATS_KEPT})
    # This file repeats the tar's metadata in the order in which images arrived.
    (images / f"{name}.parquet").unlink(missing_ok=True)
