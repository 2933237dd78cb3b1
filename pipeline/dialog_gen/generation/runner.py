"""The job of a run: images stream from the source through the engine into the store.

    read and decode (one thread) -> at most `max_in_flight` dialogues (one task per image) -> rows in order (one thread)

The threads take several images or rows at a time, because a switch of threads costs as much as a small image.

Shards overlap: while the last dialogues of one shard run, the first of the next shard begin, so the engine never waits
for a shard to end. Memory use depends neither on the length of the source nor on the size of its images: a budget of
bytes covers each image from before it is decoded until its dialogue ends, and its encoded form until it is written.

Images are admitted in the order of the source, and what is admitted needs no further memory. So if the budget is used
up, dialogues end, and after that every row can be written: then the next image is admitted.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.record import STATEMENTS, sampling_fields
from dialog_gen.dataset.shard_writer import ShardWriter, Staging, image_bytes, writing_shards
from dialog_gen.engines.base import Engine, EngineCore, EngineDiedError, ServedEngine
from dialog_gen.engines.limited import LimitedEngine
from dialog_gen.engines.load import MeasuredEngine
from dialog_gen.engines.processes import children
from dialog_gen.engines.start import EngineSpec
from dialog_gen.engines.watchdog import EngineLoop
from dialog_gen.executors.base import (
    ALONE,
    EngineStarted,
    EngineWaits,
    LoadMeasured,
    Report,
    RowDone,
    ShardStaged,
    Worker,
)
from dialog_gen.executors.load import requests_of
from dialog_gen.gates.in_run import RunGates
from dialog_gen.generation.dialogue import DialogueGenerator
from dialog_gen.generation.memory import BUDGET_BYTES, Memory
from dialog_gen.generation.meter import Meter
from dialog_gen.generation.reading import ReadImage, decode_batch, decoding_bytes, read_batch
from dialog_gen.sources.base import InputShard
from dialog_gen.sources.images import UnreadableImage

T = TypeVar("T")

_ROWS_PER_WRITE = 32
# With this many batches of rows waiting for a slow disk or bucket, no further dialogue begins.
_WRITES_AHEAD = 4
# Dialogues in addition to those in the engine: their images are decoded and their requests prepared in advance.
_PREPARED = 64
# A batch of images that are decoded together takes at most this part of the budget, unless it is one image.
_BATCHES = 16
_END: Any = object()
_EXAMPLE_CHARACTERS = 200


class Usage(NamedTuple):
    """What a dialogue took: the fields of `RowDone` with these names."""

    output_tokens: int = 0
    prompt_tokens: int = 0
    requests: int = 0
    fallback: str = ""
    statements: int = 0
    statements_lost: int = 0
    unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """The job of a run: generates a dialogue about every image of its shards, with one engine. Plain data."""

    staging: Staging
    generator: DialogueGenerator
    engine: EngineSpec
    gates: RunGates | None = None
    """The gates that score each dialogue as soon as it is complete."""

    @property
    def is_shared(self) -> bool:
        """Whether several workers can use one engine."""
        return self.engine.is_shared

    def start_core(self, log: Path, clients: int) -> EngineCore:
        """Starts a core for so many workers, one after another or at the same time; raises what `EngineSpec` does."""
        return self.engine.start_core(log, clients)

    def log(self, worker: Worker) -> Path:
        """The file for the output of the worker's engine."""
        return self.staging.engine_log(None if worker.alone else worker.engine)

    def run(self, shards: Iterator[InputShard | None], report: Report, worker: Worker = ALONE) -> None:
        """Stages every shard. The engine starts once, at the first shard.

        Raises EngineDiedError, UsageError if the source fails, DialogGenError if the engine does not start or temporary
        files cannot be written, and what `report` raises.
        """
        first = next((shard for shard in shards if shard is not None), None)
        if first is None:
            return
        with self.staging.of(worker.place, uploads=worker.uploads) as staging:
            log = staging.engine_log(None if worker.alone else worker.engine)
            if worker.alone:  # otherwise it is the output of this process, and of the engines before
                with writing_shards(staging.location):
                    log.write_bytes(b"")
            began = time.perf_counter()
            others = children()
            spec = self.engine if worker.address is None else replace(self.engine, address=worker.address)
            engine = spec.start(log)
            report(
                EngineStarted(
                    name=engine.name,
                    version=engine.version,
                    deterministic=engine.deterministic,
                    seconds=time.perf_counter() - began,
                    engine=worker.engine,
                    gpus=engine.gpus if isinstance(engine, MeasuredEngine) else 0,
                )
            )
            if isinstance(engine, ServedEngine):
                engine.on_waiting = lambda reason: report(EngineWaits(reason=reason))
            try:
                # After an engine was given up, its thread may go on: it cannot write, because the threads below have
                # ended.
                with (
                    EngineLoop(engine, self.engine.options.timeout_s, keep=others) as loop,
                    ThreadPoolExecutor(1, "reader") as reader,
                    ThreadPoolExecutor(1, "writer") as writer,
                ):
                    capacity = requests_of(self.engine.options.max_in_flight, worker.frontends)
                    meter = Meter(engine, loop.engine.clock, capacity)
                    work = _Work(self, staging, loop.engine, capacity, report, worker, meter, writer)
                    loop.run(_run(work, first, shards, reader))
            except EngineDiedError as error:
                if not worker.alone:
                    raise
                kept = f"{error} (log: {log}). Finished shards are kept: run again to continue."
                raise type(error)(kept) from error
            finally:
                if isinstance(engine, ServedEngine):
                    report(engine.use())


async def _run(work: "_Work", first: InputShard, rest: Iterator[InputShard | None], reader: ThreadPoolExecutor) -> None:
    try:
        async with asyncio.TaskGroup() as tasks:
            await work.feed(first, reader, tasks)
            while (shard := await _in(reader, next, rest, _END)) is not _END:
                if isinstance(shard, InputShard):
                    await work.feed(shard, reader, tasks)
    except BaseExceptionGroup as group:
        # All errors have the same cause: one failure can end many dialogues.
        raise _first(group) from None


class _Work:
    def __init__(
        self,
        runner: Runner,
        staging: Staging,
        engine: Engine,
        capacity: int,
        report: Report,
        worker: Worker,
        meter: Meter,
        writer: ThreadPoolExecutor,
    ) -> None:
        self._runner, self._staging, self._report = runner, staging, report
        self._worker, self._number, self._meter, self._writer = worker, worker.engine, meter, writer
        self._slots = asyncio.Semaphore(capacity + _PREPARED)
        # Most dialogues have one request at a time, but their gates have several.
        limited = runner.gates is not None or runner.generator.at_once > 1
        self._engine = LimitedEngine(engine, capacity + _PREPARED) if limited else engine
        gated = runner.gates
        self._gated = {"gates_sha256": gated.gates_sha256, "scores_sha256": gated.scores_sha256} if gated else {}
        self._memory = Memory(BUDGET_BYTES)
        self._in_row_groups = self._running = 0
        self._open = set[_Shard]()
        self._writes = 0
        self._writer_keeps_up = asyncio.Event()
        self._writer_keeps_up.set()
        self._pixels = runner.engine.options.resizing(runner.engine.model)
        of_run = {
            "model": runner.engine.model.name,
            "model_revision": runner.engine.model.revision,
            "engine": engine.name,
            "engine_version": engine.version,
        }
        entry = runner.engine.model.entry
        self._recognises = entry.recognises if entry else None
        recorded = set(sampling_fields(*(generator.sampling.recorded() for generator in runner.generator.chain)))
        self._provenance: list[dict[str, Any]] = [
            {
                **of_run,
                "protocol": generator.protocol.name,
                "prompt_sha256": generator.prompt_sha256,
                "sampling": generator.sampling.model_dump(include=recorded),
            }
            for generator in runner.generator.chain
        ]
        """Of the rows of the run's own protocol and of each fallback."""

    async def feed(self, shard: InputShard, reader: ThreadPoolExecutor, tasks: asyncio.TaskGroup) -> None:
        """Starts a dialogue for each image of the shard as slots become free; returns before the dialogues end."""
        state = _Shard(shard, ShardWriter(self._staging, shard, **self._gated))
        self._open.add(state)
        sources, index = shard.read(), 0
        batch_bytes = max(1, self._memory.limit // _BATCHES)
        while batch := await _in(reader, self._decoding, read_batch, sources, batch_bytes):
            decoding = decoding_bytes(batch)
            await self._admit(decoding + sum(read.encoded_bytes + read.decoded_bytes for read in batch))
            await _in(reader, self._decoding, decode_batch, batch, self._pixels)
            self._memory.give_back(decoding)
            self._running += len(batch)
            # The batch keeps no image that was handed over.
            batch.reverse()
            while batch:
                await self._writer_keeps_up.wait()
                await self._slots.acquire()
                tasks.create_task(self._one(state, index, batch.pop()))
                index += 1
        if index != shard.count:
            raise UsageError(
                f"shard {shard.name} gave {index} images of {shard.count}: did its input change meanwhile?"
            )
        if not shard.count:
            await self._finish(state)

    async def _admit(self, size: int) -> None:
        """Waits until the budget has `size` bytes; meanwhile, writes what can be written."""
        while not self._memory.take(size):
            for state in [state for state in self._open if state.done]:
                await self._write(state)
            # Small row groups are worse than waiting, unless there is nothing else to wait for.
            if not self._running or self._in_row_groups > self._memory.limit // 2:
                for state in list(self._open):
                    self._written(await self._in_writer(state.writer.flush))
            await self._memory.changed()

    async def _one(self, state: "_Shard", index: int, read: ReadImage) -> None:
        try:
            row, usage = await self._row(read)
            self._meter.count(usage.output_tokens)
            self._report(self._row_done(state.shard.name, row, usage))
            state.done.append((index, row, usage))
            read.images = None
            self._running -= 1
            self._memory.give_back(read.decoded_bytes)
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
        size = sum(image_bytes(row) for _, row, _ in rows)
        written = await self._in_writer(
            lambda: sum(
                state.writer.add(index, row, usage.output_tokens, fallback=usage.fallback) for index, row, usage in rows
            )
        )
        self._in_row_groups += size
        self._written(written)
        self._writes -= 1
        if self._writes < _WRITES_AHEAD:
            self._writer_keeps_up.set()
        state.written += len(rows)
        if state.written == state.shard.count:
            await self._finish(state)

    def _written(self, size: int) -> None:
        self._in_row_groups -= size
        self._memory.give_back(size)

    async def _finish(self, state: "_Shard") -> None:
        self._open.remove(state)
        # In one call: a write that fails in between, of another shard, must not cost this one.
        self._written(await self._in_writer(lambda: self._staged(state)))
        self._report(LoadMeasured(load=self._meter.take(), engine=self._number, worker=self._worker.place))

    def _staged(self, state: "_Shard") -> int:
        written = state.writer.flush()
        self._report(ShardStaged(staged=state.writer.finish(), engine=self._number))
        return written

    async def _in_writer(self, call: Callable[[], T]) -> T:
        def timed() -> T:
            with self._meter.writing:
                return call()

        return await _in(self._writer, timed)

    def _decoding(self, call: Callable[..., T], *arguments: Any) -> T:
        with self._meter.decoding:
            return call(*arguments)

    def _row_done(self, shard: str, row: Mapping[str, Any], usage: Usage) -> RowDone:
        if "status" not in row:
            return RowDone(status="accepted", **usage._asdict(), shard=shard, engine=self._number)
        return RowDone(
            status=row["status"],
            **usage._asdict(),
            reason=row["reason"],
            image_id=row["image_id"],
            example=(row["detail"] or next(iter(row["raw"]), ""))[:_EXAMPLE_CHARACTERS],
            shard=shard,
            engine=self._number,
        )

    async def _row(self, read: ReadImage) -> tuple[dict[str, Any], Usage]:
        """The record of one image or sample, and what its dialogue took."""
        source = read.source
        row: dict[str, Any] = {
            "image_id": source.image_id,
            "image_sha256": read.sha256,
            "images": [{"bytes": image.data, "path": image.path} for image in source.images],
            # A URL is that of one image.
            "url": None if source.more else source.url,
            "source_sha256": None if source.more else source.source_sha256,
            "caption": source.caption,
            **self._made_by(0, seed=None),
            "finish_reasons": [],
            "attempts": 0,
        }
        if isinstance(read.images, UnreadableImage):
            row |= {"status": "unreadable", "reason": read.images.reason, "detail": read.images.detail, "raw": []}
            return {**row, "created_at": datetime.now(UTC)}, Usage()
        if read.images is None:
            raise ValueError(f"{source.image_id} was not decoded")
        encoded = tuple(image.data for image in source.images)
        dialogue = await self._runner.generator.generate(self._engine, read.images, read.sha256, encoded)
        row |= {
            **self._made_by(dialogue.fallbacks, seed=dialogue.seed),
            "finish_reasons": list(dialogue.finish_reasons),
            "attempts": dialogue.attempts,
            "created_at": datetime.now(UTC),
        }
        if dialogue.reason is None:
            row["texts"] = [{"user": pair.user, "assistant": pair.assistant} for pair in dialogue.pairs]
            row["answer_logprobs"] = list(dialogue.answer_logprobs)
            if self._runner.generator.has_statements:
                row[STATEMENTS] = dialogue.statements and list(dialogue.statements)
            if self._runner.gates is not None:
                row["gates"] = await self._runner.gates.entries(self._engine, read.images, row)
        else:
            row |= {
                "status": "rejected",
                "reason": dialogue.reason,
                "detail": dialogue.detail,
                "raw": list(dialogue.raw),
            }
        fallback = row["protocol"] if dialogue.fallbacks else ""
        given = dialogue.statements or ()
        lost = given.count(None)
        return row, Usage(
            dialogue.output_tokens,
            dialogue.prompt_tokens,
            dialogue.requests,
            fallback,
            len(given) - lost,
            lost,
            self._recognises is not None and not all(map(self._recognises, read.images)),
        )

    def _made_by(self, protocol: int, *, seed: int | None) -> dict[str, Any]:
        """The provenance of a row; `protocol` is 0 for the run's own, 1 for its fallback, and so on."""
        columns = self._provenance[protocol]
        return {**columns, "sampling": {**columns["sampling"], "seed": seed}}


class _Shard:
    """A shard in progress. `left` is the number of rows not given to the writer yet; `done` are rows ready for it."""

    def __init__(self, shard: InputShard, writer: ShardWriter) -> None:
        self.shard, self.writer = shard, writer
        self.left, self.written = shard.count, 0
        self.done: list[tuple[int, dict[str, Any], Usage]] = []


async def _in(thread: ThreadPoolExecutor, call: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
