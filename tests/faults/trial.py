"""One fault: the disturbed command, what it leaves, the remedy, and what is there in the end."""

import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from faults.contents import Contents
from faults.forks import Ended, Forks
from faults.plan import Fault
from faults.scenarios import Scenario
from faults.shim import Shim

_EXAMPLES = 40


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A scenario that is ready to be disturbed."""

    scenario: Scenario
    pristine: Path
    """The folder that the command starts from."""
    counts: dict[str, int]
    """Operations of the undisturbed command by kind."""
    undisturbed: Contents
    before: Contents
    """What is in the place of the result before the command."""


@dataclass
class Report:
    """What the faults of a scenario came to."""

    operations: int = 0
    """File operations of the undisturbed command."""
    faults: int = 0
    """Faults that happened."""
    missed: int = 0
    """Planned faults whose operation did not come."""
    killed: int = 0
    errors: int = 0
    """Commands that ended with one line."""
    untidy: int = 0
    """Commands that ended in another way, as with a traceback."""
    repaired: int = 0
    restored: int = 0
    """Faults whose remedy took a copy of the source from before, or a new folder."""
    lost: int = 0
    doubled: int = 0
    false: int = 0
    """Times that a dataset was verified, or a command ended well, though something else was there than promised."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list[str])


class _Found(NamedTuple):
    """What is there after a command."""

    vouched: bool
    contents: Counter[tuple[str, str]]
    """Empty where it cannot be read."""


class Trials:
    """Tries faults, one after the other."""

    def __init__(self, stage: Stage, work: Path, shim: Shim, forks: Forks) -> None:
        self._stage, self._work, self._shim, self._forks = stage, work, shim, forks
        self._wanted, self._before = (_counted(found) for found in (stage.undisturbed, stage.before))
        self.report = Report(operations=sum(stage.counts.values()))

    def try_(self, fault: Fault) -> None:
        """Tries one fault."""
        scenario, report = self._stage.scenario, self.report
        self._put_back(".")
        if not self._flip(fault, before=True):
            report.missed += 1
            return
        with self._shim.armed(fault.point):
            ended = self._forks.run(scenario.command, self._work)
        if (fault.point and not self._shim.fired) or not self._flip(fault, before=False):
            report.missed += 1
            return
        report.faults += 1
        report.killed += ended.killed
        report.errors += ended.code in (1, 2)
        self._check_tidy(fault, ended)

        found = self._look(ended)
        self._check_promise(fault, ended, found, "the fault")
        ended = self._remedy(fault, found)
        found = self._look(ended)
        self._check_promise(fault, ended, found, "the remedy")
        if scenario.restorable and (found.contents != self._wanted or not found.vouched):
            report.restored += 1
            self._put_back(".")
            ended = self._forks.run(scenario.command, self._work)
            found = self._look(ended)
        self._count(fault, ended, found)

    def _put_back(self, name: str) -> None:
        shutil.rmtree(self._work / name, ignore_errors=True)
        shutil.copytree(self._stage.pristine / name, self._work / name)

    def _flip(self, fault: Fault, *, before: bool) -> bool:
        if fault.flip is None or fault.flip.before != before:
            return True
        scenario = self._stage.scenario
        folders = scenario.sources if before else scenario.made
        return fault.flip.apply([self._work / name for name in folders]) is not None

    def _look(self, ended: Ended) -> _Found:
        dataset = self._stage.scenario.dataset

        def contents() -> Contents:
            try:
                return self._stage.scenario.contents(self._work)
            except Exception:  # noqa: BLE001 - damage of any kind
                return []

        verify = ("dialog-gen", "verify", dataset) if dataset else None
        code, found = self._forks.seen(verify, self._work, contents)
        return _Found((code if dataset else ended.code) == 0, _counted(found))

    def _remedy(self, fault: Fault, found: _Found) -> Ended:
        """What a user does: repairs what does not verify, and gives the same command again."""
        scenario = self._stage.scenario
        damaged = set(scenario.sources) if fault.flip and fault.flip.before else set[str]()
        if scenario.dataset and not found.vouched:
            damaged.add(scenario.dataset)
        for dataset in damaged:
            if (self._work / dataset).exists() and not scenario.restorable:
                self.report.repaired += 1
                self._check_tidy(fault, self._forks.run(("dialog-gen", "repair", dataset), self._work))
        return self._forks.run(scenario.command, self._work)

    def _check_tidy(self, fault: Fault, ended: Ended) -> None:
        if not ended.tidy:
            self.report.untidy += 1
            self._note(f"{fault}: ended with {ended.code}: {_end_of(ended.err)}")

    def _check_promise(self, fault: Fault, ended: Ended, found: _Found, after: str) -> None:
        if not found.vouched:
            return
        # An interrupted command may have done a part, and in its own place nothing may be left of what was there.
        allowed = self._wanted if ended.code == 0 else self._wanted | self._before
        ids = Counter(name for name, _ in found.contents.elements())
        twice = [name for name, count in ids.items() if count > 1]
        wrong = found.contents - allowed
        missing = (self._wanted - found.contents) if ended.code == 0 else Counter[tuple[str, str]]()
        if wrong or missing or twice:
            self.report.false += 1
            self._note(
                f"{fault}: after {after} all is as promised (exit {ended.code}), but {wrong.total()} are wrong, "
                f"{missing.total()} missing, {len(twice)} twice: {sorted({name for name, _ in wrong | missing})[:3]}; "
                f"{_end_of(ended.out or ended.err)}"
            )

    def _count(self, fault: Fault, ended: Ended, found: _Found) -> None:
        lost = self._wanted - found.contents
        doubled = sum(count - 1 for count in Counter(name for name, _ in found.contents.elements()).values())
        self.report.lost += lost.total()
        self.report.doubled += doubled
        if lost or doubled:
            self._note(
                f"{fault}: {lost.total()} lost, {doubled} doubled; the remedy ended with {ended.code}: "
                f"{_end_of(ended.err)}"
            )
        elif not found.vouched and self._stage.scenario.dataset:
            self._note(f"{fault}: all is there, but nobody vouches for it: {_end_of(ended.err or ended.out)}")

    def _note(self, problem: str) -> None:
        if len(self.report.problems) < _EXAMPLES:
            self.report.problems.append(problem)


def _counted(found: Contents) -> Counter[tuple[str, str]]:
    return Counter((name, digest) for name, digest in found)


def _end_of(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:]
