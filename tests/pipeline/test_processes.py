"""A `Map` in processes of this machine."""

import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.process_functions import DiesOnce, dies, name_of, refuses, square

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import EngineDiedError
from dialog_gen.executors.processes import ProcessMap

pytestmark = pytest.mark.slow
TWO = ProcessMap([{"NAME": "one"}, {"NAME": "two"}])


def test_results_come_in_the_order_of_the_items() -> None:
    heard: list[float] = []
    assert list(TWO(square, range(50), heard.append)) == [(i, i * i) for i in range(50)]
    assert sum(heard) == sum(range(50))
    assert list(TWO(square, [])) == []


def test_each_process_has_its_environment() -> None:
    assert {name for _, name in TWO(name_of, range(40))} == {"one", "two"}


def test_items_are_not_read_far_ahead() -> None:
    read: list[int] = []
    results: Any = TWO(square, (read.append(i) or i for i in range(100)))
    next(results)
    assert len(read) <= 10
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(_talk)")]


def test_errors_are_raised() -> None:
    with pytest.raises(UsageError, match=r"three is wrong\."):
        list(TWO(refuses, range(9)))
    with pytest.raises(ZeroDivisionError):
        list(TWO(square, (1 // (2 - i) for i in range(5))))


def test_items_of_dead_processes_are_begun_again(tmp_path: Path) -> None:
    assert list(TWO(DiesOnce(tmp_path), range(10))) == [(i, i) for i in range(10)]
    assert len(list(tmp_path.iterdir())) == 3


def test_an_item_that_kills_ends_the_work() -> None:
    with pytest.raises(EngineDiedError, match=r"3 processes died with the same item; the last said: .*last words"):
        list(TWO(dies, range(3)))
