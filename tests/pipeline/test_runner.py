import asyncio
import errno
import hashlib
import itertools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.encoded import BAD, GOOD
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import listed_shard, png, sha256, write_files, write_images, write_tar
from helpers.rows import files_of, rows_of
from helpers.runs import make_generator, run, run_shards
from PIL import Image

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset import shard_writer as store_module
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.readme import README, described
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.base import RowDone
from dialog_gen.generation import reading as reading_module
from dialog_gen.generation import runner as runner_module
from dialog_gen.sources.base import InputShard, SourceImage, open_source, with_limit
from dialog_gen.sources.images import UNREADABLE_REASONS

CANARY = "canary-7f3a"


def assert_clean(out: Path) -> None:
    """Nothing temporary, nothing half done."""
    assert not (out / ".tmp").exists()
    assert verify(DatasetFolder(str(out))).problems == []


# Every image is accounted for


def test_every_image_is_accepted_rejected_or_unreadable(tmp_path: Path) -> None:
    kinds = {**GOOD, **BAD}
    files = {f"{name}.jpg": kinds[name][0] for name in kinds} | {f"plain {i}.png": png(i) for i in range(40)}
    # What cannot be read lies among what can, whatever the order of names.
    names = sorted(files, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    source = write_files(tmp_path / "in", {f"{i:03d} {name}": files[name] for i, name in enumerate(names)})
    bad, blind, refused = (sha256(png(i)) for i in (1, 2, 3))
    engine = ScriptedEngine(malformed={bad: EVERY}, blind={blind: EVERY}, refused={refused: EVERY}, max_delay_s=0.002)
    seen: list[str] = []
    result = run(
        source,
        tmp_path / "out",
        engine,
        shard_size=16,
        on_event=lambda event: seen.append(event.status) if isinstance(event, RowDone) else None,
    )

    unreadable = Counter(row["reason"] for row in rows_of(tmp_path / "out", "rejects") if row["status"] == "unreadable")
    assert set(unreadable) <= set(UNREADABLE_REASONS)
    assert unreadable >= Counter(reason for _, reason in BAD.values() if reason)
    assert unreadable.total() == len(BAD)
    counts = {"accepted": len(GOOD) + 37, "rejected": 3, "unreadable": len(BAD)}
    assert result.counts == Counter(seen) == counts
    assert result.images == len(files) == sum(counts.values())
    told = totals(DatasetFolder(str(tmp_path / "out")))
    assert {status: getattr(told, status) for status in counts} == counts
    assert told.images == len(files)
    assert told.reasons["rejected"] == {"no_questions": 1, "image_not_seen": 1, "engine_refused": 1}
    assert told.reasons["unreadable"] == unreadable

    rows = rows_of(tmp_path / "out") + rows_of(tmp_path / "out", "rejects")
    assert sorted(row["image_id"] for row in rows) == sorted(path.name for path in source.iterdir())
    for row in rows:
        name = row["image_id"].split(" ", 1)[1]
        expected = (
            "unreadable"
            if name.removesuffix(".jpg") in BAD
            else "rejected"
            if name in ("plain 1.png", "plain 2.png", "plain 3.png")
            else "accepted"
        )
        assert row.get("status", "accepted") == expected, (name, row.get("reason"), row.get("detail"))
        assert row["images"] == [{"bytes": files[name], "path": row["image_id"]}]
        assert row["image_sha256"] == sha256(files[name])
    # The engine got the others, the right way up.
    shown = dict(zip((asked.image_sha256 for asked in engine.asked), engine.sizes, strict=True))
    assert shown == {sha256(data): size for data, size, _ in GOOD.values()} | {
        sha256(png(i)): (4, 4) for i in range(40)
    }
    assert_clean(tmp_path / "out")


def test_a_row_says_how_it_was_made(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 2)
    engine = ScriptedEngine(malformed={sha256(png(0)): [1], sha256(png(1)): EVERY})
    generator = make_generator("blip2-two-turn")
    run(source, tmp_path / "out", engine, generator=generator)
    (row,), (reject,) = (rows_of(tmp_path / "out", part, volatile=True) for part in ("data", "rejects"))
    for made in (row, reject):
        assert (made["model"], made["model_revision"], made["protocol"]) == ("scripted-model", "r1", "blip2-two-turn")
        assert (made["engine"], made["engine_version"]) == ("scripted", "1")
        assert made["prompt_sha256"] == generator.prompt_sha256
        assert made["sampling"]["temperature"] == pytest.approx(0.7)
        assert abs(made["created_at"].timestamp() - time.time()) < 600
    last = {asked.image_sha256: asked for asked in engine.asked}
    assert (row["attempts"], row["finish_reasons"]) == (2, ["stop", "stop"])
    assert row["sampling"]["seed"] == last[row["image_sha256"]].seed - 1  # the second turn's is one more
    assert (reject["attempts"], reject["finish_reasons"], reject["raw"]) == (3, ["stop"], ["..."])
    assert (reject["status"], reject["reason"], reject["sampling"]["seed"]) == (
        "rejected",
        "empty",
        last[reject["image_sha256"]].seed,
    )


def test_rows_stand_in_the_order_of_the_source(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 60)
    done: list[str] = []
    engine = ScriptedEngine(max_delay_s=0.05, say=lambda request: done.append(request.image_sha256))
    run(source, tmp_path / "out", engine, shard_size=25, max_in_flight=30)
    ids = [row["image_id"] for row in rows_of(tmp_path / "out")]
    assert ids == [f"{i:05d}.png" for i in range(60)]
    assert done != [row["image_sha256"] for row in rows_of(tmp_path / "out")]


def test_datasets_loads_what_was_written(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 20)
    engine = ScriptedEngine(malformed={sha256(png(3)): EVERY})
    run(source, tmp_path / "out", engine, shard_size=8)
    for part, numbers in (("data", [i for i in range(20) if i != 3]), ("rejects", [3])):
        files, cache = str(tmp_path / "out" / part / "*.parquet"), str(tmp_path / "cache")
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=cache, split="train")
        assert loaded["image_id"] == [f"{i:05d}.png" for i in numbers]
        for row, number in zip(loaded, numbers, strict=True):
            (image,) = row["images"]
            assert isinstance(image, Image.Image)
            assert image.convert("RGB").getpixel((2, 2)) == (number, 0, 0)


def test_the_folder_loads_as_it_is_from_its_first_shard_on(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 20)
    out, cache = str(tmp_path / "out"), str(tmp_path / "cache")
    run(source, tmp_path / "out", ScriptedEngine(), shard_size=4, limit=4)
    assert len(datasets.load_dataset(out, cache_dir=cache, split="train")) == 4
    # A loss in a later shard.
    run(source, tmp_path / "out", ScriptedEngine(malformed={sha256(png(13)): EVERY}), shard_size=4)
    assert len(datasets.load_dataset(out, cache_dir=cache, split="train")) == 19
    rejects = datasets.load_dataset(out, "rejects", cache_dir=cache, split="train")
    assert rejects["image_id"] == ["00013.png"]


@pytest.mark.parametrize("rejects_first", [True, False])
def test_the_readme_of_a_folder_tells_about_what_is_there(tmp_path: Path, rejects_first: bool) -> None:
    source = write_images(tmp_path / "in", 8)
    lost = {sha256(png(i)): EVERY for i in (range(4) if rejects_first else range(4, 8))}
    run(source, tmp_path / "out", ScriptedEngine(malformed=lost), shard_size=4)
    assert described((tmp_path / "out" / README).read_bytes()) == {"data", "rejects"}


def test_a_readme_of_somebody_elses_stays(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 8)
    run(source, tmp_path / "out", ScriptedEngine(), shard_size=4, limit=4)
    (tmp_path / "out" / README).write_text("# Mine")
    run(source, tmp_path / "out", ScriptedEngine(), shard_size=4)
    assert (tmp_path / "out" / README).read_text() == "# Mine"


# The caption reaches no prompt


def canary_tar(folder: Path, caption: dict[str, bytes]) -> Path:
    members: dict[str, bytes] = {}
    for i in range(3):
        members |= {f"{i}{CANARY}.png": png(i)} | {f"{i}{CANARY}{ending}": data for ending, data in caption.items()}
    write_tar(folder / "0.tar", members)
    return folder


def canary_folder(folder: Path) -> Path:
    images = {f"{i}{CANARY}.png": png(i) for i in range(3)}
    return write_files(folder, images | {f"{i}{CANARY}.txt": CANARY.encode() for i in range(3)})


def canary_parquet(folder: Path, column: str) -> Path:
    folder.mkdir()
    columns = {"image": [png(i) for i in range(3)], column: [CANARY] * 3, "url": [f"http://{CANARY}"] * 3}
    pq.write_table(pa.table(columns), folder / f"{CANARY}.parquet")
    return folder


ABOUT = json.dumps({"caption": CANARY, "url": f"http://{CANARY}", "alt": CANARY}).encode()
SOURCES: dict[str, Callable[[Path], Path]] = {
    "tar, txt": lambda folder: canary_tar(folder, {".txt": CANARY.encode()}),
    "tar, json": lambda folder: canary_tar(folder, {".json": ABOUT}),
    "tar, both": lambda folder: canary_tar(folder, {".txt": CANARY.encode(), ".json": ABOUT}),
    "folder": canary_folder,
    "parquet, caption": lambda folder: canary_parquet(folder, "caption"),
    "parquet, text": lambda folder: canary_parquet(folder, "text"),
}


@pytest.mark.parametrize("protocol", ["llava-3qa", "blip2-two-turn"])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_caption_reaches_no_prompt(tmp_path: Path, kind: str, protocol: str) -> None:
    source = SOURCES[kind](tmp_path / "in")
    engine = ScriptedEngine(malformed={sha256(png(1)): [1]})
    run(source, tmp_path / "out", engine, generator=make_generator(protocol))
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == [CANARY] * 3
    assert len(engine.asked) > 3
    assert not [asked.prompt for asked in engine.asked if CANARY in asked.prompt]


def test_a_caption_that_is_no_text_ends_no_run(tmp_path: Path) -> None:
    """JSON may spell half a character, which UTF-8 cannot."""
    about = b'{"caption": "smile \\ud83d", "url": "http://x/\\udc00"}'
    write_tar(tmp_path / "in" / "0.tar", {"a.png": png(0), "a.json": about})
    assert run(tmp_path / "in", tmp_path / "out", ScriptedEngine()).counts == {"accepted": 1}
    (row,) = rows_of(tmp_path / "out")
    assert row["caption"].startswith("smile ")


# Exactly once


@pytest.fixture
def few_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few dialogues at a time, so that the first shards end long before the last begin."""
    monkeypatch.setattr(runner_module, "_PREPARED", 2)


@pytest.mark.usefixtures("few_prepared")
def test_a_dying_engine_costs_no_row_and_changes_none(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 40)
    write_files(source, {"00005.png": b"", "00017.png": b"<html>"})
    knobs: dict[str, Any] = {
        "malformed": {sha256(png(2)): [1], sha256(png(9)): EVERY, sha256(png(30)): [1, 2]},
        "refused": {sha256(png(11)): EVERY},
        "max_delay_s": 0.003,
    }
    run(source, tmp_path / "undisturbed", ScriptedEngine(**knobs))
    assert_clean(tmp_path / "undisturbed")
    out, asked = tmp_path / "out", list[set[str]]()
    for dies_after in (0, 3, 25, 12, None):
        engine = ScriptedEngine(**knobs, dies_after=dies_after)
        complete = {row["image_sha256"] for part in ("data", "rejects") for row in rows_of(out, part)}
        if dies_after is None:
            run(source, out, engine, max_in_flight=2)
        else:
            with pytest.raises(
                EngineDiedError, match=r"scripted engine died \(log: .*engine\.log\).*run again"
            ) as caught:
                run(source, out, engine, max_in_flight=2)
            assert caught.value.exit_code == 1
        assert engine.closed == 1
        assert_clean(out)
        asked.append({request.image_sha256 for request in engine.asked})
        assert not asked[-1] & complete
    assert len(asked[-1]) < 38  # some shards were complete before
    for part in ("data", "rejects"):
        assert rows_of(out, part) == rows_of(tmp_path / "undisturbed", part)
    assert verify(DatasetFolder(str(out))).images == 40


def test_the_engine_starts_once_for_all_shards_and_not_for_none(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 23)
    engine = ScriptedEngine()
    result = run(source, tmp_path / "out", engine, shard_size=2)
    assert (engine.starts, engine.closed, result.shards_done, result.shards_skipped) == (1, 1, 12, 0)
    assert result.engine == {"name": "scripted", "version": "1", "deterministic": True}
    files = files_of(tmp_path / "out")
    skipped: list[int] = []
    again = run(source, tmp_path / "out", engine, shard_size=2, on_event=lambda event: skipped.append(event.images))
    assert (engine.starts, engine.closed, again.shards_done, again.shards_skipped) == (1, 1, 0, 12)
    assert (again.images, again.images_skipped, skipped) == (0, 23, [2] * 11 + [1])
    assert files_of(tmp_path / "out") == files


def test_the_engines_log_begins_anew(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 4)
    logs = list[tuple[Path, bytes]]()

    def start(log: Path) -> ScriptedEngine:
        logs.append((log, log.read_bytes()))
        log.write_text("words")
        return ScriptedEngine()

    for limit in (2, 4):
        shards = with_limit(open_source(str(tmp_path / "in"), shard_size=2), limit)
        run_shards(shards, tmp_path / "out", ScriptedEngine(), start=start)
    assert logs == [(tmp_path / "out" / "engine.log", b"")] * 2


def test_only_what_is_missing_or_changed_is_done(tmp_path: Path) -> None:
    source, out = write_images(tmp_path / "in", 12), tmp_path / "out"

    def asked(**settings: Any) -> tuple[set[int], list[str]]:
        engine = ScriptedEngine()
        result = run(source, out, engine, shard_size=4, **settings)
        assert_clean(out)
        numbers = {sha256(png(i, size)): i for i in range(12) for size in ((4, 4), (90, 90))}
        return {numbers[request.image_sha256] for request in engine.asked}, result.redone

    assert asked(limit=6) == ({0, 1, 2, 3, 4, 5}, [])
    assert asked(limit=5) == (set(), [])
    assert asked(limit=7) == ({4, 5, 6}, ["images-000001"])  # the last shard anew
    assert asked() == ({4, 5, 6, 7, 8, 9, 10, 11}, ["images-000001"])
    write_files(source, {"00009.png": png(9, (90, 90))})
    assert asked() == ({8, 9, 10, 11}, ["images-000002"])
    assert rows_of(out)[9]["images"][0]["bytes"] == png(9, (90, 90))
    (out / "data" / "images-000000.parquet").unlink()
    assert asked() == ({0, 1, 2, 3}, ["images-000000"])


# Bounds


@pytest.mark.usefixtures("few_prepared")
def test_the_engine_holds_a_bounded_number_of_requests(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in", 30)
    engine = ScriptedEngine(max_delay_s=0.2)
    run(source, tmp_path / "out", engine, max_in_flight=5, shard_size=4)
    assert 3 <= engine.most_at_once <= 7


class Held(bytes):
    """Bytes that are counted as long as they are held."""

    lock = threading.RLock()
    now = most = 0

    def __new__(cls, data: bytes) -> "Held":
        with cls.lock:
            Held.now += 1
            Held.most = max(Held.most, Held.now)
        return super().__new__(cls, data)

    def __del__(self) -> None:
        with self.lock:
            Held.now -= 1


class Endless:
    shard_name = "{}"

    def identity(self) -> object:
        return "endless"

    def index(self) -> Iterator[Any]:
        yield from ()

    def read(self, items: tuple[Any, ...]) -> Iterator[SourceImage]:
        for number in items:
            yield SourceImage(str(number), Held(png(number)))


@pytest.mark.parametrize("write_s", [0.0, 0.05], ids=["fast_writer", "slow_writer"])
def test_images_are_held_no_longer_than_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_s: float) -> None:
    def add(self: store_module.ShardWriter, index: int, *row: Any, **others: Any) -> int:
        time.sleep(write_s if index % 8 == 0 else 0)
        return written(self, index, *row, **others)

    written = store_module.ShardWriter.add
    monkeypatch.setattr(store_module.ShardWriter, "add", add)
    monkeypatch.setattr(reading_module, "_IMAGES_AT_ONCE", 4)
    monkeypatch.setattr(runner_module, "_PREPARED", 26)
    monkeypatch.setattr(runner_module, "_ROWS_PER_WRITE", 8)
    monkeypatch.setattr(store_module, "ROWS_PER_GROUP", 10)
    monkeypatch.setattr(Held, "most", 0)
    shards = (InputShard(f"s{n}", 400, "f", Endless(), tuple(range(400 * n, 400 * n + 400))) for n in range(3))
    # A tenth is rejected: those wait to be a row group longest.
    refused = {sha256(png(number)): EVERY for number in range(0, 1200, 10)}
    engine = ScriptedEngine(refused=refused, max_delay_s=0.002)
    result = run_shards(shards, tmp_path / "out", engine, max_in_flight=6)
    assert result.counts == {"accepted": 1080, "rejected": 120}
    # 32 in flight, 8 read ahead, 32 on their way to the writer, 2 x 10 in row groups of a shard or two, and those that
    # wait for an earlier one. It was 260 where nothing waited for the slow writer.
    assert 16 < Held.most < 150
    assert Held.now == 0


# Ends before the end


def shrink_folder(source: Path) -> None:
    (source / "00010.png").unlink()


def shrink_parquet(source: Path) -> None:
    (file,) = source.iterdir()
    pq.write_table(pq.read_table(file).slice(0, 10), file)


def shrink_tar(source: Path) -> None:
    (file,) = source.iterdir()
    file.write_bytes(file.read_bytes()[: 10 * 1024 + 600])


def make_tar(source: Path) -> Path:
    return write_tar(source / "0.tar", {f"{i:02d}.png": png(i) for i in range(12)}).parent


def make_parquet(source: Path) -> Path:
    source.mkdir()
    pq.write_table(pa.table({"image": [png(i) for i in range(12)]}), source / "0.parquet")
    return source


@pytest.mark.parametrize(
    ("make", "shrink", "message"),
    [
        (lambda source: write_images(source, 12), shrink_folder, "is gone"),
        (make_parquet, shrink_parquet, "gave 2 images of 4"),
        (make_tar, shrink_tar, "cut short since it was indexed"),
    ],
    ids=["folder", "parquet", "tar"],
)
def test_a_source_that_shrinks_ends_the_run_and_no_shard_is_half(
    tmp_path: Path, make: Callable[[Path], Path], shrink: Callable[[Path], None], message: str
) -> None:
    source, out = make(tmp_path / "in"), tmp_path / "out"
    run(source, out, ScriptedEngine(), shard_size=4, limit=4)
    before = {name: data for name, data in files_of(out).items() if "/" in name}
    engine = ScriptedEngine(max_delay_s=0.001)

    def start(log: Path) -> ScriptedEngine:
        shrink(source)
        return engine.start(log)

    with pytest.raises(UsageError, match=message):
        run(source, out, engine, shard_size=4, start=start)
    assert engine.closed == 1
    assert_clean(out)
    assert before.items() <= files_of(out).items()
    assert totals(DatasetFolder(str(out))).images in (4, 8)  # the last shard is the one that fails


def test_a_shard_that_gives_less_than_it_promised_is_not_committed(tmp_path: Path) -> None:
    images = [SourceImage(str(i), png(i)) for i in range(6)]
    shards = [listed_shard("good", images[:3]), listed_shard("short", images[3:], count=4)]
    engine = ScriptedEngine()
    with pytest.raises(UsageError, match="short gave 3 images of 4: did its input change"):
        run_shards(iter(shards), tmp_path / "out", engine)
    assert engine.closed == 1
    assert "shards/short.json" not in files_of(tmp_path / "out")
    assert_clean(tmp_path / "out")


def test_a_shard_without_images_is_done_at_once(tmp_path: Path) -> None:
    shards = [listed_shard("empty", []), listed_shard("one", [SourceImage("0", png(0))])]
    result = run_shards(iter(shards), tmp_path / "out", ScriptedEngine())
    assert (result.shards_done, result.images) == (2, 1)
    assert_clean(tmp_path / "out")
    engine = ScriptedEngine()
    assert run_shards(iter(shards), tmp_path / "out", engine).shards_skipped == 2
    assert engine.starts == 0


def stop_at(number: int, stop: Callable[[], None]) -> Callable[[Any], None]:
    """What an engine says: nothing of its own, but at this answer it calls `stop`."""
    answers = itertools.count(1)
    return lambda request: stop() if next(answers) == number else None


def raise_cancelled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("stop", "error"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
        (raise_cancelled, EngineDiedError),  # the engine dropped a request: not in silence
    ],
    ids=["ctrl-c", "dropped"],
)
@pytest.mark.usefixtures("few_prepared")
def test_a_run_that_is_stopped_keeps_what_is_finished(
    tmp_path: Path, stop: Callable[[], None], error: type[BaseException]
) -> None:
    source, out = write_images(tmp_path / "in", 60), tmp_path / "out"
    run(source, tmp_path / "undisturbed", ScriptedEngine())
    engine = ScriptedEngine(say=stop_at(40, stop), max_delay_s=0.002)
    began = time.monotonic()
    with pytest.raises(error):
        run(source, out, engine, max_in_flight=2)
    assert time.monotonic() - began < 120
    assert engine.closed == 1
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("reader", "writer"))]
    assert_clean(out)
    assert 0 < totals(DatasetFolder(str(out))).images < 60
    run(source, out, ScriptedEngine())
    assert rows_of(out) == rows_of(tmp_path / "undisturbed")


def test_a_run_that_is_stopped_before_the_engine_stands(tmp_path: Path) -> None:
    source, out = write_images(tmp_path / "in", 3), tmp_path / "out"

    def start(log: Path) -> ScriptedEngine:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, out, ScriptedEngine(), start=start)
    assert_clean(out)


@pytest.mark.parametrize(("name", "after"), [("write_table", 0), ("write_table", 3), ("close", 1)])
def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int) -> None:
    source, out = write_images(tmp_path / "in", 40), tmp_path / "out"
    real, calls = getattr(pq.ParquetWriter, name), itertools.count()

    def full(self: pq.ParquetWriter, *arguments: Any, **options: Any) -> None:
        # Writers that earlier tests left are closed whenever they are collected.
        if out in Path(self.where).parents and next(calls) >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, *arguments, **options)

    engine = ScriptedEngine(max_delay_s=0.001)
    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, name, full)
        with pytest.raises(DialogGenError, match=f"cannot write {out}: No space left on device") as caught:
            run(source, out, engine, shard_size=4)
    assert (type(caught.value), caught.value.exit_code) == (DialogGenError, 2)
    assert engine.closed == 1
    assert_clean(out)
    assert len(DatasetFolder(str(out)).shards()) == after
    run(source, out, ScriptedEngine(), shard_size=4)
    assert len(rows_of(out)) == 40
