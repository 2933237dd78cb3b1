"""How shards are handed out to workers that come, die and come again."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import shard_of

from dialog_gen.core.errors import MissingExtraError
from dialog_gen.dataset.folder import ShardManifest
from dialog_gen.dataset.shard_writer import StagedShard
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.base import EngineStarted, Event, RowDone, ShardCommitted, ShardStaged, Worker, WorkerDied
from dialog_gen.executors.dispatch import Dispatcher, passed_on
from dialog_gen.executors.worker import Ask, Ended, Events, NoMore, serve
from dialog_gen.generation.summary import RunResult

ONE, TWO, THREE, FOUR = (Worker(engine=number, alone=False, place=str(number)) for number in range(4))
STARTED = EngineStarted(name="e", version="1", deterministic=True, seconds=1.0)
CAUSE = EngineDiedError("boom")


class Hive:
    """A dispatcher, with what it said to each worker and reported."""

    def __init__(self, shards: int) -> None:
        self.reported: list[Event] = []
        self.said: dict[Worker, list[str]] = {}
        self.dispatcher = Dispatcher((shard_of(f"s{n}", 1) for n in range(shards)), self.reported.append)
        self.dispatcher.events(ONE, Events((STARTED,)))

    def ask(self, worker: Worker) -> list[str]:
        said = self.said.setdefault(worker, [])
        self.dispatcher.ask(worker, lambda given: said.append("-" if isinstance(given, NoMore) else given.name))
        return said

    def stage(self, worker: Worker, shard: str) -> None:
        self.dispatcher.events(worker, Events((ShardStaged(staged=staged(shard), engine=worker.engine),)))


def staged(shard: str) -> StagedShard:
    counts: Any = {"images": 1, "accepted": 1, "rejected": 0, "unreadable": 0, "reasons": {}, "output_tokens": 1}
    manifest = ShardManifest(shard=shard, config_sha256="", input_fingerprint="", files=[], **counts)
    return StagedShard(manifest=manifest, files={})


def test_each_shard_goes_to_one_worker_and_all_end_together() -> None:
    hive = Hive(3)
    assert (hive.ask(ONE), hive.ask(TWO), hive.ask(ONE)) == (["s0", "s2"], ["s1"], ["s0", "s2"])
    assert hive.ask(TWO) == ["s1"]  # it waits: the other one may die
    for shard in ("s0", "s2"):
        hive.stage(ONE, shard)
    assert hive.ask(ONE) == ["s0", "s2"]
    assert not hive.dispatcher.is_done
    hive.stage(TWO, "s1")
    assert (hive.said[ONE], hive.said[TWO]) == (["s0", "s2", "-"], ["s1", "-"])
    assert hive.dispatcher.is_done


def test_a_waiting_worker_gets_what_a_dead_one_lost() -> None:
    hive = Hive(2)
    hive.ask(ONE), hive.ask(TWO), hive.ask(TWO)
    assert hive.dispatcher.lost(ONE, CAUSE, "log") == ("s0",)
    assert hive.said[TWO] == ["s1", "s0"]
    assert hive.reported[-1] == WorkerDied(shards=("s0",), cause="boom")
    hive.ask(THREE)
    for shard in ("s0", "s1"):
        hive.stage(TWO, shard)
    assert (hive.said[ONE], hive.said[THREE]) == (["s0"], ["-"])


def test_a_dead_worker_gets_nothing() -> None:
    hive = Hive(1)
    hive.ask(TWO)
    hive.ask(ONE)
    assert hive.dispatcher.lost(ONE, CAUSE, "log") == ()
    hive.dispatcher.lost(TWO, CAUSE, "log")
    assert (hive.said[ONE], hive.ask(THREE)) == ([], ["s0"])


def test_three_in_a_row_end_the_run_and_a_finished_shard_between_them_does_not() -> None:
    hive = Hive(20)
    for round_ in range(4):
        hive.ask(ONE)
        hive.dispatcher.lost(ONE, CAUSE, "log")
        hive.ask(TWO)
        hive.stage(TWO, hive.said[TWO][-1])
        assert hive.said[ONE][-1] == hive.said[TWO][-1] == f"s{round_}"
    for worker in (ONE, TWO, THREE):
        hive.ask(worker)
    for worker in (ONE, TWO):
        hive.dispatcher.lost(worker, CAUSE, "log")
    with pytest.raises(EngineDiedError, match=r"3 engines died one after the other.*: boom \(log: a\.log\)\. Finished"):
        hive.dispatcher.lost(THREE, CAUSE, "a.log")


def test_a_shard_that_three_workers_died_with_ends_the_run() -> None:
    hive = Hive(20)
    hive.ask(FOUR)
    for worker in (ONE, TWO, THREE):
        hive.ask(worker)
        assert hive.said[worker] == ["s1"]
        hive.ask(FOUR)
        hive.stage(FOUR, hive.said[FOUR][-1])
        if worker is not THREE:
            hive.dispatcher.lost(worker, CAUSE, "log")
    with pytest.raises(EngineDiedError, match=r"died while they worked on shard s1; the last one: boom \(log: log\)"):
        hive.dispatcher.lost(THREE, CAUSE, "log")


def test_if_none_has_started_the_error_is_that_of_the_first() -> None:
    dispatcher = Dispatcher(iter([]), lambda event: None)
    with pytest.raises(EngineDiedError, match=r"^boom$"):
        dispatcher.lost(ONE, CAUSE, "log")


def test_lost_rows_are_not_counted() -> None:
    result, committed = RunResult(), {"accepted": 1, "rejected": 0, "unreadable": 0, "redone": False}
    row = RowDone(status="accepted", output_tokens=5, shard="s0")
    for event in (STARTED, row, row, RowDone(status="rejected", output_tokens=2, shard="s1")):
        result.add(event)
    result.add(ShardCommitted(shard="s1", **committed))
    result.add(WorkerDied(shards=("s0", "s1"), cause="boom"))
    assert (result.images, +result.counts, result.output_tokens) == (1, {"rejected": 1}, 2)
    assert result.engines[0].images == 3  # it did the work


class Wire:
    """A link to a driver that gives these shards."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.sent = list(answers), list[Any]()

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def receive(self, timeout_s: float) -> Any:
        return self.answers.pop(0)


class Echo:
    """A job that reports the names of its shards, and then raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def log(self, worker: Worker) -> Path:
        return Path("log")

    def run(self, shards: Any, report: Any, worker: Worker = ONE) -> None:
        for shard in shards:
            if shard is not None:
                report(RowDone(status=shard.name, output_tokens=0))
        if self.error:
            raise self.error


def test_a_worker_asks_until_there_are_no_more() -> None:
    wire = Wire(None, shard_of("a", 1), None, None, shard_of("b", 1), NoMore())
    serve(Echo(), wire, ONE)
    events = [event.status for message in wire.sent if isinstance(message, Events) for event in message.events]
    assert events == ["a", "b"]
    assert [type(message) for message in wire.sent if not isinstance(message, Events)] == [Ask, Ask, Ask, Ended]
    assert wire.sent[-1] == Ended(None)


def test_an_error_that_cannot_be_sent_is_sent_as_its_message() -> None:
    wire = Wire(NoMore())
    serve(Echo(MissingExtraError("polishing", "wax")), wire, ONE)
    error = pickle.loads(pickle.dumps(wire.sent[-1])).error
    assert (str(error), error.exit_code) == (str(MissingExtraError("polishing", "wax")), 2)


@pytest.mark.parametrize(
    ("error", "died"), [(EngineDiedError("gone"), True), (ValueError("a bug"), False), (KeyboardInterrupt(), False)]
)
def test_the_last_message_says_how_it_ended(error: BaseException, died: bool) -> None:
    wire = Wire(NoMore())
    serve(Echo(error), wire, ONE)
    ended = wire.sent[-1]
    assert (ended.died, str(error) in str(ended.error)) == (died, True)


@pytest.mark.parametrize(
    ("shards", "text"),
    [([], "0 shards go to others"), (["a"], "1 shard goes to others"), (["a", "b"], "2 shards go to others")],
)
def test_what_a_dead_worker_leaves(shards: list[str], text: str) -> None:
    assert passed_on(shards) == text
