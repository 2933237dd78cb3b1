"""Downloads the embedded world the way any image set is downloaded: from URLs, by img2dataset, into tars.

A server on loopback renders each image when it is asked for. img2dataset runs in a session of its own, so that it and
its workers can be ended together, however this process ends. What it stores depends on the order of arrival, the
clock and the server's port; the tars are rewritten without these: the same arguments give the same bytes.
"""

import fcntl
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from dialog_gen.errors import FailedCheckError, MissingExtraError, UsageError
from dialog_gen.world.files import ShapesSubset, replacing, write_files
from dialog_gen.world.language import web_caption
from dialog_gen.world.render import render_png
from dialog_gen.world.scenes import Split, draw_scene

_HOST = "127.0.0.1"
_MADE = ("images", "truth.jsonl", "vqa", "retrieval")
_STATS_KEPT = ("count", "successes", "failed_to_download", "failed_to_resize", "status_dict")
_URL_BATCH = 8192
_POLL_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadSummary:
    """What lies in `out` after a download; `already_complete` where there was nothing to do."""

    out: Path
    images: int
    shards: int
    already_complete: bool

    def __str__(self) -> str:
        found = "complete already, nothing to do" if self.already_complete else "downloaded"
        return f"{self.out}: {found}: {self.images} images in {self.shards} tars"


def download_shapes(out: Path, *, split: Split, seed: int, limit: int, shard_size: int = 1024) -> DownloadSummary:
    """Downloads the first `limit` images of a split into `out`/images and writes the annotations beside them.

    An interrupted download goes on where it stopped, a complete one (it has `out`/download.json) is left as it is.

    Raises UsageError for a limit or shard size below 1 or where `out` holds something else, MissingExtraError where
    img2dataset is not installed, FailedCheckError where an image could not be had.
    """
    for name, value in (("limit", limit), ("shard size", shard_size)):
        if value < 1:
            raise UsageError(f"the {name} must be at least 1, got {value}")
    subset = ShapesSubset(split=split, seed=seed, limit=limit, shard_size=shard_size)
    request = {"manifest": "shapes", **asdict(subset)}
    with _locked(out):
        complete = _is_complete(out, subset, request)
        if not complete:
            _download(out, subset, request)
    return DownloadSummary(out=out, images=limit, shards=len(subset.shards()), already_complete=complete)


@contextmanager
def _locked(out: Path) -> Generator[None, None, None]:
    """Holds the folder against a second download; the system lets go of it when this process ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"cannot use {out} as output folder: {error.strerror}") from None
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another download is writing to {out}: wait for it or choose another folder") from None
        yield
    finally:
        os.close(folder)


def _is_complete(out: Path, subset: ShapesSubset, request: dict[str, Any]) -> bool:
    """Whether `out` holds what is requested. Raises UsageError where it holds anything but that or a part of it."""
    found = _read_json(out / "download.json")
    begun = found if found is not None else _read_json(_work(out) / "request.json")
    if begun is None:
        if made := [name for name in _MADE if (out / name).exists()]:
            raise UsageError(f"{out} holds {', '.join(made)} of no known download: choose another folder")
        return False
    if differing := [key for key in request if begun.get(key) != request[key]]:
        was = ", ".join(f"{key} = {begun.get(key)}" for key in differing)
        now = ", ".join(f"{key} = {request[key]}" for key in differing)
        raise UsageError(f"{out} was begun with {was}, now asked for with {now}: choose another folder")
    if found is not None:
        if missing := [name for name in subset.shards() if not (out / "images" / f"{name}.tar").exists()]:
            raise UsageError(f"{out} lacks {len(missing)} tars that its download.json counts, first {missing[0]}.tar")
        shutil.rmtree(_work(out), ignore_errors=True)
    return found is not None


def _download(out: Path, subset: ShapesSubset, request: dict[str, Any]) -> None:
    if importlib.util.find_spec("img2dataset") is None:
        raise MissingExtraError("downloading images", "download")
    work, images, shards = _work(out), _work(out) / "images", subset.shards()
    _write_json(work / "request.json", request)
    # Shards with losses are downloaded again: img2dataset takes a shard that has a stats file as done.
    for name in shards:
        if not _is_whole(images, name, shards[name]):
            (images / f"{name}_stats.json").unlink(missing_ok=True)
    left = sum(len(s) for name, s in shards.items() if not _is_whole(images, name, s))
    with _Server() as server:
        _write_urls(work / "urls.parquet", subset, server.server_port)
        exit_code = _run_img2dataset(work, subset, server, left)
    _check(work, subset, exit_code)
    for name, scenes in shards.items():
        _normalise(images, name, [subset.url(index) for index in scenes])
    write_files(out, subset)
    # These come last: a folder that has `images` is whole, one that has download.json is finished.
    shutil.rmtree(out / "images", ignore_errors=True)
    images.replace(out / "images")
    _write_json(out / "download.json", {**request, "images": subset.limit, "shards": len(shards)})
    shutil.rmtree(work)


def _work(out: Path) -> Path:
    return out / ".download"


class _Server(ThreadingHTTPServer):
    """Serves /{split}/{seed}/{index}.png on a free port while it is entered."""

    # Every thread of img2dataset opens a connection for each image.
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__((_HOST, 0), _Handler)
        self.images_served = 0

    def __enter__(self) -> "_Server":
        self._thread = threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that was killed is no news.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        match = re.fullmatch(r"/(train|val|test)/(-?\d+)/(\d+)\.png", self.path)
        if not match:
            self.send_error(404)
            return
        png = render_png(draw_scene(cast("Split", match[1]), int(match[2]), int(match[3])))
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(len(png)))
        self.end_headers()
        self.wfile.write(png)
        # Unlocked: only the progress bar reads it.
        cast("_Server", self.server).images_served += 1

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as the base class names it)
        pass


def _write_urls(path: Path, subset: ShapesSubset, port: int) -> None:
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, subset.limit, _URL_BATCH):
            batch = range(start, min(start + _URL_BATCH, subset.limit))
            urls = [f"http://{_HOST}:{port}/{subset.split}/{subset.seed}/{i}.png" for i in batch]
            captions = [web_caption(subset.scene(i), subset.rng("web", i)) for i in batch]
            writer.write_table(pa.table({"url": urls, "caption": captions}, schema))


def _run_img2dataset(work: Path, subset: ShapesSubset, server: _Server, images: int) -> int:
    """Runs `_main` in a new session, its prints in a log; shows progress on a terminal. Returns the exit code."""
    arguments = {
        "url_list": str(work / "urls.parquet"),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": str(work / "images"),
        "output_format": "webdataset",
        "number_sample_per_shard": subset.shard_size,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "image_size": 336,
        "processes_count": min(2, len(subset.shards())),
        "thread_count": 16,
        "retries": 3,
        "incremental_mode": "incremental",
        "enable_wandb": False,
    }
    command = [sys.executable, "-P", "-m", "dialog_gen.world.fetch", json.dumps(arguments)]
    # Loopback is not for proxies; a dependency of img2dataset would look for updates of itself.
    env = {**os.environ, "no_proxy": _HOST, "NO_PROXY": _HOST, "NO_ALBUMENTATIONS_UPDATE": "1"}
    with (
        (work / "img2dataset.log").open("wb") as log,
        Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress,
        subprocess.Popen(  # noqa: S603 (its words are ours)
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env, start_new_session=True
        ) as process,
    ):
        task = progress.add_task("downloading shapes", total=images)
        try:
            while process.poll() is None:
                progress.update(task, completed=server.images_served)
                time.sleep(_POLL_S)
            progress.update(task, completed=server.images_served)
        finally:
            # Also after a normal end: img2dataset's logger outlives a crash.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode


def _main() -> None:
    """Runs img2dataset until it is done or the parent process is gone."""

    def end_with_parent() -> None:
        os.read(0, 1)  # returns when the other end of the pipe closes
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, daemon=True).start()
    importlib.import_module("img2dataset").download(**json.loads(sys.argv[1]))


def _check(work: Path, subset: ShapesSubset, exit_code: int) -> None:
    """Raises FailedCheckError, with counts, unless every image was downloaded."""
    images, shards = work / "images", subset.shards()
    stats = [_read_json(images / f"{name}_stats.json") or {} for name in shards]
    succeeded = sum(s.get("successes", 0) for s in stats)
    if exit_code == 0 and all(_is_whole(images, name, scenes) for name, scenes in shards.items()):
        return
    errors = sum((Counter(s.get("status_dict", {})) for s in stats), Counter[str]())
    del errors["success"]
    listed = "; ".join(f"{count} x {error}" for error, count in errors.most_common(3)) or "no error recorded"
    raise FailedCheckError(
        f"{succeeded} of {subset.limit} images were downloaded, {subset.limit - succeeded} were not ({listed}); "
        f"img2dataset ended with {exit_code}, its log is {work / 'img2dataset.log'}; run again to fetch the rest"
    )


def _is_whole(images: Path, name: str, scenes: range) -> bool:
    stats = _read_json(images / f"{name}_stats.json") or {}
    return stats.get("count") == stats.get("successes") == len(scenes)


def _normalise(images: Path, name: str, urls: list[str]) -> None:
    """Rewrites a shard so that it depends on its content alone."""
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
    stats = _read_json(images / f"{name}_stats.json") or {}
    _write_json(images / f"{name}_stats.json", {key: stats[key] for key in _STATS_KEPT})
    # It repeats the tar's metadata in the order of arrival.
    (images / f"{name}.parquet").unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where the file is missing or was cut off while being written."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
