"""The job of a run: images stream from the source through the engine into the store.

    read and decode (one thread) -> at most `max_in_flight` dialogues (one task per image) -> rows in order (one thread)

The threads take several images or rows at a time, because a switch of threads costs as much as a small image.

Shards overlap: while the last dialogues of one shard run, the first of the next shard begin, so the engine never waits
for a shard to end. Memory use does not depend on the length of the source: only images in flight and rows that wait for
an earlier row are in memory.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.writer import DatasetWriter, ShardWriter
from dialog_gen.engines.base import Engine, EngineDiedError
from dialog_gen.engines.start import EngineSpec
from dialog_gen.executors.base import EngineStarted, Report, RowDone, ShardCommitted, ShardSkipped
from dialog_gen.generation.dialogue import DialogueGenerator
from dialog_gen.sources.base import InputShard, SourceImage
from dialog_gen.sources.images import UnreadableImage, decode_image

T = TypeVar("T")

_READ_AHEAD = 16
_ROWS_PER_WRITE = 32
# With this many batches of rows waiting for a slow disk or bucket, no further dialogue begins.
_WRITES_AHEAD = 4
# Dialogues in addition to those in the engine: their images are decoded and their requests prepared in advance.
_PREPARED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """The job of a run: generates a dialogue about every image of its shards, with one engine."""

    store: DatasetWriter
    generator: DialogueGenerator
    engine: EngineSpec

    def run(self, shards: Iterator[InputShard], report: Report) -> None:
        """Commits every shard that the store does not have yet.

        The engine starts once, at the first shard that is not complete. Raises EngineDiedError, UsageError if the
        source fails, and DialogGenError if the store fails; shards that are complete by then stay.
        """
        redone = set[str]()
        todo = self._incomplete(shards, redone, report)
        first = next(todo, None)
        if first is None:
            return
        began = time.perf_counter()
        log = self.store.engine_log()
        # Started before the event loop, which would delay a Ctrl-C until the engine has started.
        engine = self.engine.start(log)
        report(
            EngineStarted(
                name=engine.name,
                version=engine.version,
                deterministic=engine.deterministic,
                seconds=time.perf_counter() - began,
            )
        )
        try:
            asyncio.run(self._run(first, todo, engine, redone, report))
        except EngineDiedError as error:
            raise EngineDiedError(f"{error} (log: {log}). Finished shards are kept: run again to continue.") from error

    def _incomplete(self, shards: Iterator[InputShard], redone: set[str], report: Report) -> Iterator[InputShard]:
        for shard in shards:
            if self.store.is_complete(shard):
                report(ShardSkipped(shard=shard.name, images=shard.count))
                continue
            if not self.store.claim(shard):
                continue  # another process makes this shard, or has just made it
            if self.store.exists(f"shards/{shard.name}.json"):
                redone.add(shard.name)
            yield shard

    async def _run(
        self, first: InputShard, rest: Iterator[InputShard], engine: Engine, redone: set[str], report: Report
    ) -> None:
        with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:
            work = _Work(self, engine, redone, report, writer)
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.TaskGroup() as tasks:
                    shard: InputShard | None = first
                    while shard is not None:
                        await work.feed(shard, reader, tasks)
                        shard = await loop.run_in_executor(reader, next, rest, None)
            except BaseExceptionGroup as group:
                # All errors have the same cause: one failure can end many dialogues.
                raise _first(group) from None
            finally:
                await engine.close()


@dataclass(frozen=True, slots=True)
class _Read:
    """An image with its source, its hash and its decoded form, or the error if it is unreadable."""

    source: SourceImage
    sha256: str
    image: Image.Image | UnreadableImage


def _read(source: SourceImage) -> _Read:
    sha256 = hashlib.sha256(source.data).hexdigest()
    try:
        return _Read(source, sha256, decode_image(source.data))
    except UnreadableImage as unreadable:
        return _Read(source, sha256, unreadable)


class _Work:
    def __init__(
        self, runner: Runner, engine: Engine, redone: set[str], report: Report, writer: ThreadPoolExecutor
    ) -> None:
        self._runner, self._engine, self._redone, self._report, self._writer = runner, engine, redone, report, writer
        self._slots = asyncio.Semaphore(runner.engine.options.max_in_flight + _PREPARED)
        self._writes = 0
        self._writer_keeps_up = asyncio.Event()
        self._writer_keeps_up.set()
        self._loop = asyncio.get_running_loop()
        self._sampling = runner.generator.sampling.model_dump()
        self._provenance: dict[str, Any] = {
            "model": runner.engine.model.name,
            "model_revision": runner.engine.model.revision,
            "engine": engine.name,
            "engine_version": engine.version,
            "protocol": runner.generator.protocol.name,
            "prompt_sha256": runner.generator.prompt_sha256,
        }

    async def feed(self, shard: InputShard, reader: ThreadPoolExecutor, tasks: asyncio.TaskGroup) -> None:
        """Starts a dialogue for each image of the shard as slots become free; returns before the dialogues end."""
        state = _Shard(shard, ShardWriter(self._runner.store, shard))
        sources, index = shard.read(), 0
        while batch := await self._loop.run_in_executor(
            reader, lambda: [_read(source) for source in islice(sources, _READ_AHEAD)]
        ):
            for read in batch:
                await self._writer_keeps_up.wait()
                await self._slots.acquire()
                tasks.create_task(self._one(state, index, read))
                index += 1
        if index != shard.count:
            raise UsageError(
                f"shard {shard.name} gave {index} images of {shard.count}: did its input change meanwhile?"
            )
        if not shard.count:
            await self._finish(state)

    async def _one(self, state: "_Shard", index: int, read: _Read) -> None:
        try:
            row, output_tokens = await self._row(read)
            state.done.append((index, row, output_tokens))
            if len(state.done) == min(_ROWS_PER_WRITE, state.left):
                await self._write(state)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The engine cancelled the task, not this run. A task group ignores that: the shard would be lost.
            raise EngineDiedError("the engine dropped a request") from None
        finally:
            self._slots.release()

    async def _write(self, state: "_Shard") -> None:
        rows, state.done = state.done, []
        state.left -= len(rows)
        self._writes += 1
        if self._writes >= _WRITES_AHEAD:
            self._writer_keeps_up.clear()
        await self._in_writer(lambda: [state.writer.add(*row) for row in rows])
        self._writes -= 1
        if self._writes < _WRITES_AHEAD:
            self._writer_keeps_up.set()
        for _, row, output_tokens in rows:
            self._report(RowDone(status=row.get("status", "accepted"), output_tokens=output_tokens))
        state.written += len(rows)
        if state.written == state.shard.count:
            await self._finish(state)

    async def _finish(self, state: "_Shard") -> None:
        manifest = await self._in_writer(state.writer.commit)
        self._report(
            ShardCommitted(
                shard=manifest.shard,
                accepted=manifest.accepted,
                rejected=manifest.rejected,
                unreadable=manifest.unreadable,
                redone=manifest.shard in self._redone,
            )
        )

    async def _in_writer(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._writer, call)

    async def _row(self, read: _Read) -> tuple[dict[str, Any], int]:
        """The record of one image, and the number of output tokens of its dialogue."""
        source = read.source
        row: dict[str, Any] = {
            "image_id": source.image_id,
            "image_sha256": read.sha256,
            "images": [{"bytes": source.data, "path": source.path}],
            "url": source.url,
            "source_sha256": source.source_sha256,
            "caption": source.caption,
            **self._provenance,
            "sampling": {**self._sampling, "seed": None},
            "finish_reasons": [],
            "attempts": 0,
        }
        if isinstance(read.image, UnreadableImage):
            row |= {"status": "unreadable", "reason": read.image.reason, "detail": read.image.detail, "raw": []}
            return {**row, "created_at": datetime.now(UTC)}, 0
        dialogue = await self._runner.generator.generate(self._engine, read.image, read.sha256)
        row["sampling"]["seed"] = dialogue.seed
        row |= {
            "finish_reasons": list(dialogue.finish_reasons),
            "attempts": dialogue.attempts,
            "created_at": datetime.now(UTC),
        }
        if dialogue.reason is None:
            row["texts"] = [{"user": pair.user, "assistant": pair.assistant} for pair in dialogue.pairs]
            row["answer_logprobs"] = list(dialogue.answer_logprobs)
        else:
            row |= {
                "status": "rejected",
                "reason": dialogue.reason,
                "detail": dialogue.detail,
                "raw": list(dialogue.raw),
            }
        return row, dialogue.output_tokens


class _Shard:
    """A shard in progress. `left` is the number of rows not given to the writer yet; `done` are rows ready for it."""

    def __init__(self, shard: InputShard, writer: ShardWriter) -> None:
        self.shard, self.writer = shard, writer
        self.left, self.written = shard.count, 0
        self.done: list[tuple[int, dict[str, Any], int]] = []


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
