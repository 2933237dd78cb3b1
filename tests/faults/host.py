"""The process that all commands are forked from: python -m faults.host FOLDER, with the shim preloaded.

Reads requests, JSON objects of one line each, and answers each with one line:

    {"scenario": NAME, "faults": COUNT, "seed": SEED}           plans the faults and tries them
    {"scenario": NAME, "faults": ["write 3 torn", ...]}         tries these
"""

import gc
import importlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from helpers.file_server import FileServer

from faults.forks import Forks
from faults.plan import Fault, plan
from faults.scenarios import PAGES, SCENARIOS, add_engine, zipped
from faults.shim import VARIABLE, Shim
from faults.trial import Report, Stage, Trials


@contextmanager
def served() -> Iterator[str]:
    """The address of a server, in a process of its own, of what is fetched."""
    pages = {**PAGES, "val.zip": zipped(), "q.json": b'{"questions": []}'}
    told, tell = os.pipe()
    ends, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        with FileServer(pages).serving() as server:
            os.write(tell, f"{server.url}\n".encode())
            os.read(ends, 1)  # returns when this process's parent has ended
        os._exit(0)
    with os.fdopen(told) as lines:
        url = lines.readline().strip()
    yield url
    os.close(end)
    os.waitpid(pid, 0)


def _warm(names: list[str]) -> None:
    """Imports what a command imported, so that no later one has to."""
    for name in names:
        if name not in sys.modules and name.partition(".")[0] not in ("__main__", "__mp_main__"):
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - whatever cannot be imported by its name is imported where it is
                continue


class Host:
    """Tries faults of all scenarios in one folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url = folder, url
        self._shim = Shim(Path(os.environ[VARIABLE]), folder / "work")
        self._forks = Forks(folder)
        self._stages: dict[str, Stage] = {}

    def stage(self, name: str) -> Stage:
        """What the scenario starts from, and what it makes of it undisturbed."""
        if name not in self._stages:
            self._stages[name] = self._set(name)
        return self._stages[name]

    def _set(self, name: str) -> Stage:
        scenario, work, pristine = SCENARIOS[name], self._folder / "work", self._folder / f"pristine {name}"
        for place, value in scenario.patches.items():
            patch(place, value).start()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for command in self._forks.call(lambda: scenario.prepare(work, self._url)):
            self._forks.run(command, work).expect(0)
        if scenario.damage:
            scenario.damage(work)
        shutil.copytree(work, pristine)
        with self._shim.armed():
            code, modules = self._forks.seen(scenario.command, work, lambda: list(sys.modules))
        if code:
            raise RuntimeError(f"undisturbed, {name} ended with {code}")
        counts = self._shim.counts
        _warm(modules)
        gc.collect()
        gc.freeze()  # a collection in a fork would copy what it shares with this process
        undisturbed = self._forks.call(lambda: scenario.contents(work))
        before = [] if scenario.damage else self._forks.call(lambda: _contents_before(scenario.contents, pristine))
        if scenario.midway:
            shutil.rmtree(work)
            shutil.copytree(pristine, work)
            self._forks.run(scenario.midway, work).expect(0)
            before += self._forks.call(lambda: scenario.contents(work))
        return Stage(scenario=scenario, pristine=pristine, counts=counts, undisturbed=undisturbed, before=before)

    def answer(self, request: dict[str, Any]) -> Report:
        """Tries the faults of a request."""
        stage = self.stage(request["scenario"])
        asked = request["faults"]
        rng = random.Random(f"{request['scenario']} {request.get('seed', 0)}")
        faults = plan(stage, asked, rng) if isinstance(asked, int) else [Fault.of(text) for text in asked]
        trials = Trials(stage, self._folder / "work", self._shim, self._forks)
        began = time.monotonic()
        for fault in faults:
            trials.try_(fault)
        trials.report.seconds = time.monotonic() - began
        return trials.report


def _contents_before(contents: Any, pristine: Path) -> Any:
    try:
        return contents(pristine)
    except OSError:
        return []


def main() -> None:
    """Answers requests until there are no more."""
    folder = Path(sys.argv[1]).resolve()
    add_engine()
    with served() as url:
        host = Host(folder, url)
        for line in sys.stdin:
            print(json.dumps(asdict(host.answer(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
