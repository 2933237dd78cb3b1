"""Progress bars on a terminal, and what is logged while they are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.terminal import on_terminal

from dialog_gen.core.progress import Window

SCRIPT = """
import logging, os
from dialog_gen.core.console import log_to_stderr
from dialog_gen.core.progress import progress_bars

log_to_stderr()
with progress_bars() as show:
    show("dialogues", 1, 4, "images")
    logging.warning("shard 7 was made again")
    kept, log = os.dup(2), os.open("engine.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 2)
    logging.warning("of an engine that starts")
    os.dup2(kept, 2)
    show("dialogues", 4, 4, "images")
logging.warning("the end")
"""


def test_logs_stand_in_lines_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "bars.py").write_text(SCRIPT)
    code, said = on_terminal(tmp_path, "bars", PYTHONPATH=f"{tmp_path}:{':'.join(sys.path)}", COLUMNS="100")
    assert code == 0, said
    # Each line as it stands after the last return to its beginning, without colours and movements.
    lines = [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.rstrip("\r").split("\r")[-1]).rstrip() for line in said.split("\n")
    ]
    assert "WARNING  shard 7 was made again" in lines
    assert "WARNING  the end" in lines
    assert [line for line in lines if "dialogues" in line and "WARNING" in line] == []
    assert "starts" not in said
    assert "of an engine that starts" in (tmp_path / "engine.log").read_text()


PLAIN = SCRIPT.replace("log_to_stderr()", "log_to_stderr(plain=True)")


def test_plain_log_lines_stand_in_lines_of_their_own_too(tmp_path: Path) -> None:
    (tmp_path / "bars.py").write_text(PLAIN)
    code, said = on_terminal(tmp_path, "bars", PYTHONPATH=f"{tmp_path}:{':'.join(sys.path)}", COLUMNS="100")
    assert code == 0, said
    lines = [
        re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.rstrip("\r").split("\r")[-1]).rstrip() for line in said.split("\n")
    ]
    assert {"shard 7 was made again", "the end"} <= set(lines)
    assert [line for line in lines if "dialogues" in line and "made" in line] == []
    assert "of an engine that starts" in (tmp_path / "engine.log").read_text()


def test_bars_leave_room_for_the_echo_of_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "bars.py").write_text(
        "from dialog_gen.core.progress import progress_bars\n"
        "with progress_bars() as show:\n    show('dialogues ' * 9, 1, 4, 'images', 'note ' * 30)\n"
    )
    code, said = on_terminal(tmp_path, "bars", PYTHONPATH=f"{tmp_path}:{':'.join(sys.path)}", COLUMNS="100")
    assert code == 0, said
    widths = [len(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)) for line in re.split(r"[\r\n]+", said)]
    assert 80 < max(widths) <= 97


def test_a_pipe_gets_one_line_a_record() -> None:
    script = (
        "import logging; from dialog_gen.core.console import log_to_stderr as to; to(); logging.warning('word ' * 60)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == f"WARNING  {'word ' * 60}\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_of_the_last_minute_and_falls_while_nothing_is_done() -> None:
    clock = Clock()
    window = Window(clock)
    assert window.rate() is None
    window.add(500)  # done before
    assert window.rate() is None
    for second in range(1, 101):
        clock.now = 1000 + second
        window.add(500 + 3 * second)
    assert window.rate() == pytest.approx(3)
    for second in range(101, 301):  # now a tenth as fast
        clock.now = 1000 + second
        window.add(800 + 0.3 * (second - 100))
    assert window.rate() == pytest.approx(0.3)
    clock.now += 600
    assert window.rate() == pytest.approx(0.3 * 60 / 660, rel=0.02)


def test_what_follows_the_last_unit_does_not_slow_a_stage_that_ended() -> None:
    clock = Clock()
    window = Window(clock)
    window.add(0)
    clock.now += 5
    window.add(250)
    clock.now += 3  # an engine stops
    window.add(250)
    assert window.rate(ended=True) == pytest.approx(50)
    assert window.rate() == pytest.approx(250 / 8)


def test_many_reports_at_once_are_no_rate() -> None:
    clock = Clock()
    window = Window(clock)
    window.add(0)
    for done in range(1000):
        clock.now += 1e-6
        window.add(done)
    assert window.rate() is None


def test_memory_of_a_window_is_that_of_a_minute() -> None:
    clock = Clock()
    window = Window(clock)
    for done in range(100_000):
        clock.now += 0.1
        window.add(done)
    assert window.rate() == pytest.approx(10)
    assert len(vars(window)["_reports"]) < 700
