"""`dialog-gen batch read`: takes the results of batches, and commits the shards whose dialogues are complete."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import open_regular
from dialog_gen.core.hashing import sha256_images
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.visible import visible
from dialog_gen.dataset.command import recorded_command
from dialog_gen.dataset.folder import open_dataset
from dialog_gen.dataset.notes import RUN
from dialog_gen.dataset.verify import totals
from dialog_gen.dataset.writer import DatasetWriter, check_config, open_writer
from dialog_gen.engines.base import RefusedRequestError
from dialog_gen.engines.openai.answers import answer_of, completion_of, tokens_of
from dialog_gen.engines.openai.budget import Tokens
from dialog_gen.engines.openai.faults import Fault, redacted
from dialog_gen.executors.base import ExecutorOptions
from dialog_gen.generation.batch.answers import Answers
from dialog_gen.generation.batch.replay import ReplayEngine, ReplaySpec
from dialog_gen.generation.batch.write import generate_arguments
from dialog_gen.generation.plan import RunPlan
from dialog_gen.generation.reading import decoded_images
from dialog_gen.generation.run import plan_of, run_plan
from dialog_gen.generation.spending import paid_before, server_report
from dialog_gen.generation.summary import RunResult, run_summary
from dialog_gen.sources.base import InputShard
from dialog_gen.sources.images import UnreadableImage

_MAX_LINE_BYTES = 64 << 20
_REFUSED = (400, 413, 422)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRead:
    """What `batch_read` found and did."""

    answers: int = 0
    """New answers."""
    duplicates: int = 0
    """Answers to requests that had one already: the first one stays."""
    failed: int = 0
    """Requests that the server did not answer: the next `batch write` writes them again."""
    foreign: int = 0
    """Lines that belong to another dataset."""
    unusable: int = 0
    """Lines that are no results."""
    shards: int = 0
    """Shards that were committed."""
    images: int = 0
    """Their images."""
    images_left: int = 0
    """Images in shards whose dialogues are not complete."""

    def to_json(self) -> dict[str, Any]:
        """As `dialog-gen batch read --json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        others = {name: getattr(self, name) for name in ("duplicates", "failed", "foreign", "unusable")}
        counts = [f"{self.answers} new answers", *(f"{count} {name}" for name, count in others.items() if count)]
        left = "the dataset is complete"
        if self.images_left:
            left = (
                f"{count_of(self.images_left, 'image')} {'is' if self.images_left == 1 else 'are'} left: run "
                f"`dialog-gen batch write` again"
            )
        return (
            f"{', '.join(counts)}\n{count_of(self.shards, 'shard')} with {count_of(self.images, 'image')} "
            f"committed; {left}"
        )


def batch_read(
    out: str | Path, results: Sequence[str | Path] = (), *, on_progress: OnProgress = ignore_progress
) -> BatchRead:
    """Stores the answers in result files of batches, and commits the shards of `out` that are complete now.

    The files, of results or of errors, may come in any order, again, and incomplete. Each file is taken as a whole or
    not at all. Raises UsageError if `out` was not made by `batch_write` or `generate` with the engine openai, or if a
    file cannot be read; DialogGenError if the disk fails.
    """
    out = str(out)
    made_by = recorded_command(open_dataset(out))
    if made_by is None or made_by.command != "run" or made_by.arguments.get("engine") != "openai":
        raise UsageError(f"{visible(out)} was not begun with `dialog-gen batch write`: run that first.")
    plan = plan_of(out, generate_arguments(made_by.arguments), starts=False)
    check_config(out, plan.config())
    counts = Counter[str]()
    with open_writer(out, plan.config()) as store, Answers(store) as answers:
        engine = ReplayEngine(answers, plan.generator, store.config_sha256)
        for file in map(Path, results):
            found = Counter[str]()
            try:
                new = answers.add(_results(file, engine, found, on_progress))
            except OSError as error:
                raise UsageError(f"{visible(file)} cannot be read: {error.strerror or error}.") from None
            counts += found + Counter(answers=new, duplicates=found["usable"] - new)
        result = _commit(plan, store, engine, counts, on_progress)
    known = {field.name for field in fields(BatchRead)}
    return BatchRead(
        **{name: count for name, count in counts.items() if name in known},
        shards=result.shards_done,
        images=result.images,
    )


def _commit(
    plan: RunPlan, store: DatasetWriter, engine: ReplayEngine, counts: Counter[str], on_progress: OnProgress
) -> RunResult:
    values = {field.name: getattr(plan.engine, field.name) for field in fields(plan.engine)}
    replayed = replace(plan, engine=ReplaySpec(**values, engine=engine))

    def complete() -> Iterator[InputShard]:
        for shard in plan.shards():
            if store.finished(shard) or asyncio.run(_is_complete(shard, engine)):
                yield shard
            else:
                counts["images_left"] += shard.count

    result = RunResult()
    # The answers are there and paid: all of them are recorded.
    run_plan(
        replayed,
        "local",
        ExecutorOptions(engines=1),
        store,
        complete(),
        plan.shards,
        on_progress,
        result,
        keep_going=True,
    )
    if result.images:
        server = server_report(replayed, result.served, paid_before(store, RUN))
        store.put_json(RUN, run_summary(replayed, result, totals(store), server=server))
    return result


async def _is_complete(shard: InputShard, engine: ReplayEngine) -> bool:
    for source in shard.read():
        if await engine.unanswered(sha256_images([image.data for image in source.images])):
            try:
                decoded_images(source)
            except UnreadableImage:
                continue
            return False
    return True


def _results(
    file: Path, engine: ReplayEngine, counts: Counter[str], on_progress: OnProgress
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The final answers in a file; counts all lines."""
    with open_regular(file) as lines:
        number = 0
        while line := lines.readline(_MAX_LINE_BYTES):
            number += 1
            on_progress(f"reading {file.name}", number, None, "lines")
            if not line.strip():
                continue
            found: Any = None
            with suppress(ValueError):
                found = parse_json(line, finite=False)
            custom_id: Any = found.get("custom_id") if isinstance(found, dict) else None
            knows = engine.knows(custom_id)
            if knows is None:
                counts["unusable"] += 1
            elif not knows:
                counts["foreign"] += 1
            elif (answer := _answer(found)) is None:
                counts["failed"] += 1
            else:
                counts["usable"] += 1
                yield custom_id, answer


def _answer(line: dict[str, Any]) -> dict[str, Any] | None:
    """The answer to store; None if the request must be sent again."""
    response = line.get("response")
    if not isinstance(response, dict):
        return None
    body, status = response.get("body"), response.get("status_code")
    if status in _REFUSED:
        error = body.get("error", body) if isinstance(body, dict) else body
        said = error.get("message", error) if isinstance(error, dict) else error
        return {"refused": redacted(f"{status} {said}", None)}
    if status != 200:
        return None
    try:
        completion = completion_of(body)
        answer = answer_of(completion, tokens_of(completion) or Tokens(0, 0))
    except Fault:
        return None
    except RefusedRequestError as refused:
        return {"refused": refused.detail}
    return {name: getattr(answer, name) for name in ("text", "finish_reason", "output_tokens", "prompt_tokens")}
