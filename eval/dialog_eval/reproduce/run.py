"""Runs the steps of a plan, several at a time, and skips what an earlier run did.

`OUT/steps` has a log of each step, NAME.log, and for each that ended well a record, NAME.json: its command line, what
it made, when it ended and how long it took, and when the steps had ended that it needed. A step is done if its output
exists, its record has the same command line, and what it needs is done and was not made anew since. The commands
continue what was interrupted themselves, so a step without a record simply runs.
"""

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dialog_eval.reproduce.steps import Step
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import locked_folder, write_json, writing
from dialog_gen.core.sealed_json import sealed, unsealed

_POLL_S = 0.1
_GRACE_S = 60

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of the steps."""

    done: set[str] = field(default_factory=set[str])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Step -> the last line of its log."""
    left: dict[str, str] = field(default_factory=dict[str, str])
    """Step that did not run -> the step that it needs and that failed."""


class Records:
    """What earlier runs did in a folder."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "steps"

    def log(self, step: Step) -> Path:
        """The file with what the step printed."""
        return self.folder / f"{step.name}.log"

    def done(self, steps: Sequence[Step]) -> dict[str, float]:
        """The names of the steps that are done, with the seconds that they took; `steps` are in order."""
        found: dict[str, float] = {}
        for step in steps:
            record = self._read(step.name)
            if record is not None and found.keys() >= set(step.needs) and self._is_of(record, step):
                found[step.name] = record["seconds"]
        return found

    def add(self, step: Step, seconds: float) -> None:
        """Notes that a step ended well."""
        record = {
            "command": list(step.words),
            "makes": str(step.makes),
            "seconds": round(seconds, 1),
            "ended": datetime.now(UTC).isoformat(),
            "needs": {need: self._ended(need) for need in step.needs},
        }
        write_json(self.folder / f"{step.name}.json", sealed(record))

    def check(self, steps: Sequence[Step]) -> None:
        """Raises UsageError if a folder that a step is to write was made by another command line or of other inputs.

        So it does for a step of another plan that has the name of one of these, whose record would be lost. Files are
        replaced.
        """
        done = self.done(steps)
        for step in steps:
            made = Path((self._read(step.name) or {}).get("makes", step.makes))
            if made.is_dir() and made.resolve() != step.makes.resolve():
                raise UsageError(
                    f"{made} was made by a step of the same name, {step.name}, of another plan or with another "
                    f"`makes`: give another --out, or remove it: rm -r {shlex.quote(str(made))}"
                )
        wrong = {
            step: record
            for step in steps
            if step.name not in done and step.makes.is_dir() and (record := self._read(step.name)) is not None
        }
        if not wrong:
            return
        (step, record), *_ = wrong.items()
        if record["command"] != list(step.words):
            how = f"by another command line ({shlex.join(record['command'])})"
        else:
            needed = [need for need in step.needs if need not in done or not self._is_present(record, need)]
            how = f"from what {needed[0]} made before"
        raise UsageError(
            f"{step.makes} was made {how}: give another --out, or remove what is to be made anew: "
            f"rm -r {shlex.join(str(step.makes) for step in wrong)}"
        )

    def remove_outdated(self, steps: Sequence[Step]) -> None:
        """Removes the files that the steps made before, so that no page shows them should a step fail now."""
        for step in steps:
            if step.makes.is_file() and self._read(step.name) is not None:
                step.makes.unlink()

    def _is_of(self, record: Mapping[str, Any], step: Step) -> bool:
        """Whether a record is of this command line, and the inputs and the output are as they were."""
        same = record["command"] == list(step.words) and all(self._is_present(record, need) for need in step.needs)
        return same and step.makes.exists()

    def _is_present(self, record: Mapping[str, Any], need: str) -> bool:
        """Whether what was needed is what is there now. Records of earlier versions do not say when a step ended."""
        return (record.get("needs") or {}).get(need) == self._ended(need)

    def _ended(self, name: str) -> str | None:
        return (self._read(name) or {}).get("ended")

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            record = unsealed((self.folder / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        is_record = isinstance(record, dict) and isinstance(record.get("seconds"), int | float)
        return record if is_record and isinstance(record.get("command"), list) else None


def run_steps(
    steps: Sequence[Step], out: Path, *, jobs: int = 1, tell: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Runs what is not done, `jobs` steps at a time; `steps` are in order. `tell` gets a line at each start and end.

    A failed step leaves out what needs it; the others run. On KeyboardInterrupt or SIGTERM the running steps are
    interrupted, too, and waited for. Raises UsageError if another process works in `out`, or if the folder that a step
    writes was made by another command line or of other inputs; DialogGenError if the folder cannot be written.
    """
    records = Records(out)
    with writing(out), locked_folder(records.folder, "dialog-eval reproduce"):
        records.check(steps)
        with _ended_by_sigterm():
            return _Scheduler(steps, records, jobs, tell).run()


@contextlib.contextmanager
def _ended_by_sigterm() -> Generator[None]:
    """Lets SIGTERM end this process as Ctrl-C does, so that no step stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Scheduler:
    def __init__(self, steps: Sequence[Step], records: Records, jobs: int, tell: Callable[[str], None]) -> None:
        self._steps, self._records, self._jobs, self._tell = steps, records, jobs, tell
        self._outcome = Outcome()
        self._waiting = list[Step]()
        self._running: dict[str, tuple[Step, subprocess.Popen[bytes], float]] = {}
        self._outcome.done |= records.done(steps).keys()
        self._waiting += [step for step in steps if step.name not in self._outcome.done]
        records.remove_outdated(self._waiting)
        self._to_run = len(self._waiting)
        self._started = 0

    def run(self) -> Outcome:
        try:
            while self._waiting or self._running:
                self._start_ready()
                if self._running:
                    time.sleep(_POLL_S)
                for step, process, started in list(self._running.values()):
                    if process.poll() is not None:
                        self._ended(step, process.returncode, time.monotonic() - started)
        finally:
            self._interrupt()
        return self._outcome

    def _start_ready(self) -> None:
        lost = self._outcome.failed | self._outcome.left
        for step in list(self._waiting):
            if missing := [need for need in step.needs if need in lost]:
                self._outcome.left[step.name] = lost[missing[0]] if missing[0] in self._outcome.left else missing[0]
                lost = self._outcome.failed | self._outcome.left
                self._waiting.remove(step)
            elif len(self._running) < self._jobs and self._outcome.done.issuperset(step.needs) and self._is_free(step):
                self._waiting.remove(step)
                self._start(step)

    def _is_free(self, step: Step) -> bool:
        """Whether it can run next to what runs: the first training in a `data.work` prepares it for the others."""
        work = _work(step)
        others = [other for other, _, _ in self._running.values() if work is not None and _work(other) == work]
        prepared = any(_work(other) == work for other in self._steps if other.name in self._outcome.done)
        return prepared or not others

    def _start(self, step: Step) -> None:
        self._started += 1
        self._tell(f"[{self._started}/{self._to_run}] {step.name}: {step.command}")
        step.makes.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        if self._jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self._jobs)))
        with self._records.log(step).open("wb") as log:
            try:
                # A group of its own: Ctrl-C in the terminal reaches this process only, which passes it on once.
                process = subprocess.Popen(  # noqa: S603 - the commands of a plan
                    step.words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    process_group=0,
                )
            except OSError as error:
                self._fail(step, f"{step.words[0]}: {error.strerror}")
                return
        self._running[step.name] = (step, process, time.monotonic())

    def _ended(self, step: Step, code: int, seconds: float) -> None:
        del self._running[step.name]
        if code == 0 and step.makes.exists():
            self._records.add(step, seconds)
            self._outcome.done.add(step.name)
            self._tell(f"{step.name}: done in {_duration(seconds)}")
        else:
            there = "" if step.makes.exists() else f", and {step.makes} is not there"
            said = _last_line(self._records.log(step)) or f"exit code {code}{there}"
            self._fail(step, said)

    def _fail(self, step: Step, said: str) -> None:
        self._outcome.failed[step.name] = said
        _log.warning("%s failed, see %s: %s", step.name, self._records.log(step), said)

    def _interrupt(self) -> None:
        """Interrupts and waits for what still runs, if an exception ended the loop."""
        # Shells start what runs in the background with SIGINT ignored, and steps inherit that.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        for _, process, _ in self._running.values():
            _signal(process, signal.SIGTERM if ignored else signal.SIGINT)
        deadline = time.monotonic() + _GRACE_S
        for _, process, _ in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)
                process.wait()


def _work(step: Step) -> str | None:
    """The folder of what a training derives from its data."""
    return next((word for word in step.words if word.startswith("data.work=")), None)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
