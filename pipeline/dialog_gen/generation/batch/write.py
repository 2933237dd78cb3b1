"""`dialog-gen batch write`: the requests that have no answer yet, as files for a batch API."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, BinaryIO, Literal

from dialog_gen.core.errors import check_at_least
from dialog_gen.core.files import fsync, writing
from dialog_gen.core.hashing import sha256_images
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.visible import visible
from dialog_gen.dataset.writer import DatasetWriter, check_config, open_writer
from dialog_gen.engines.openai import check_server_options
from dialog_gen.engines.openai.messages import chat_body
from dialog_gen.generation.batch.answers import Answers
from dialog_gen.generation.batch.replay import ReplayEngine
from dialog_gen.generation.plan import RunPlan
from dialog_gen.generation.reading import decoded_images
from dialog_gen.generation.run import generate, plan_of, recorded_call, with_defaults
from dialog_gen.sources.images import UnreadableImage

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""OpenAI's limits for one file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchWritten:
    """What `batch_write` wrote."""

    requests: int
    files: tuple[str, ...]
    images: int
    """Images in shards that are not complete; those without a request have all their answers, or are unreadable."""

    def to_json(self) -> dict[str, Any]:
        """As `dialog-gen batch write --json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.requests:
            return "no request is left to be answered"
        lines = [
            f"{count_of(self.requests, 'request')} for {count_of(self.images, 'image')}",
            *(f"  {visible(file)}" for file in self.files),
        ]
        return "\n".join([*lines, "send each file as a batch, and give its results to `dialog-gen batch read`"])


def batch_write(
    *,
    model: str,
    images: str | Path,
    out: str | Path,
    protocol: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int | None = None,
    attempts: int = 3,
    structured: bool = False,
    shard_size: int = 1024,
    image_max_side: int = 1024,
    image_format: Literal["jpeg", "png"] = "jpeg",
    prefix_ids: bool = False,
    images_per_sample: Literal["first", "all"] = "first",
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
    on_progress: OnProgress = ignore_progress,
) -> BatchWritten:
    """Writes the next requests of each dialogue of `out` that is not complete, in OpenAI's batch format.

    The parameters are those of `generate`, which can also finish the dataset with the engine openai. A file has at most
    `max_requests` requests and `max_bytes` bytes. Two equal images have one request. Raises what `generate` raises for
    wrong settings or input.
    """
    for flag, value in (("--max-requests", max_requests), ("--max-bytes", max_bytes)):
        check_at_least(flag, value, 1)
    given = {name: value for name, value in locals().items() if name in signature(generate).parameters}
    arguments = generate_arguments(given)
    out = str(out)
    plan = plan_of(out, arguments, starts=False)
    check_server_options(plan.engine.options)
    check_config(out, plan.config())
    plan.check_ids(on_progress)
    with (
        open_writer(out, plan.config(), made_by=recorded_call(arguments)) as store,
        Answers(store) as answers,
        _RequestFiles(answers.folder, max_requests, max_bytes).opened() as files,
    ):
        engine = ReplayEngine(answers, plan.generator, store.config_sha256)
        return asyncio.run(_write(plan, store, engine, files, on_progress))


def generate_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """All arguments of `generate` for the engine openai, except `out`; those that are not given have their defaults."""
    arguments = with_defaults({**given, "engine": "openai"})
    return {name: value for name, value in arguments.items() if name not in ("out", "dry_run", "on_progress")}


async def _write(
    plan: RunPlan, store: DatasetWriter, engine: ReplayEngine, files: "_RequestFiles", on_progress: OnProgress
) -> BatchWritten:
    count = 0
    for shard in plan.shards():
        if store.finished(shard):
            continue
        for source in shard.read():
            count += 1
            on_progress("requests", count, None, "images")
            encoded = tuple(image.data for image in source.images)
            found = await engine.unanswered(sha256_images(encoded))
            if not found:
                continue
            try:
                images = decoded_images(source)
            except UnreadableImage:
                continue  # its row needs no answer
            spec = plan.engine
            for one in found:
                request = replace(one.request, images=images, encoded=encoded)
                body = chat_body(
                    request, spec.model.name, spec.sampling, spec.options, limit_name="max_completion_tokens"
                )
                files.add(one.custom_id, body)
    return BatchWritten(requests=files.requests, files=tuple(map(str, files.close())), images=count)


class _RequestFiles:
    """Writes a folder of files, each within the limits. The folder gets its name when all files are complete."""

    def __init__(self, folder: Path, max_requests: int, max_bytes: int) -> None:
        numbers = [int(path.name.rpartition("-")[2]) for path in folder.glob("write-[0-9]*") if path.suffix != ".part"]
        self._folder = folder / f"write-{max(numbers, default=0) + 1:04}"
        self._part = self._folder.with_suffix(".part")
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._file: BinaryIO | None = None
        self._names = list[str]()
        self._in_file = self._bytes = 0
        self._seen = set[bytes]()
        self.requests = 0

    @contextmanager
    def opened(self) -> Generator["_RequestFiles"]:
        """Removes what was left unfinished, before and after."""
        shutil.rmtree(self._part, ignore_errors=True)
        try:
            yield self
        finally:
            if self._file is not None:
                self._file.close()
            shutil.rmtree(self._part, ignore_errors=True)

    def add(self, custom_id: str, body: dict[str, Any]) -> None:
        """Writes a request, unless it was written before."""
        key = hashlib.blake2b(custom_id.encode(), digest_size=12).digest()
        if key in self._seen:
            return
        self._seen.add(key)
        request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        line = f"{json.dumps(request)}\n".encode()
        with writing(self._folder):
            if self._in_file >= self._max_requests or self._bytes + len(line) > self._max_bytes:
                self._end()
            if self._file is None:
                self._part.mkdir(parents=True, exist_ok=True)
                self._names.append(f"requests-{len(self._names) + 1:05}.jsonl")
                self._file = (self._part / self._names[-1]).open("wb")
                self._in_file = self._bytes = 0
            self._file.write(line)
        self._in_file, self._bytes, self.requests = self._in_file + 1, self._bytes + len(line), self.requests + 1

    def close(self) -> list[Path]:
        """Completes the folder; returns its files."""
        with writing(self._folder):
            self._end()
            if self._names:
                self._part.rename(self._folder)
                fsync(self._folder.parent)
        return [self._folder / name for name in self._names]

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            fsync(Path(self._file.name))
            self._file = None
