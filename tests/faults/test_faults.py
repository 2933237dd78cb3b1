"""Whole commands under injected faults: after each, and its remedy, all is there as the undisturbed command left it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from faults import shim
from faults.scenarios import SCENARIOS

pytestmark = pytest.mark.slow


class Host:
    """The process that tries faults."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._requests, self._answers = requests, answers

    def tried(self, scenario: str, faults: int | list[str], seed: int = 0) -> dict[str, Any]:
        """The report about these faults."""
        self._requests.write(json.dumps({"scenario": scenario, "faults": faults, "seed": seed}) + "\n")
        self._requests.flush()
        answer = self._answers.readline()
        assert answer, "the host ended: its error is above"
        return json.loads(answer)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with the shim under it."""
    folder = tmp_path_factory.mktemp("faults")
    library = shim.build(folder)
    if library is None or not sys.platform.startswith("linux"):
        pytest.skip("the shim needs Linux and a C compiler")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        shim.VARIABLE: str(shim.make_state(folder / "state")),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    command = [sys.executable, "-m", "faults.host", str(folder)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        yield Host(process.stdin, process.stdout)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_lost_nothing_false(
    scenario: str, host: Host, reports: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    weights = sum(each.weight for each in SCENARIOS.values())
    count = max(1, round(pytestconfig.getoption("--faults") * SCENARIOS[scenario].weight / weights))
    report = host.tried(scenario, count, pytestconfig.getoption("--fault-seed"))
    reports[scenario] = report
    found = {key: report[key] for key in ("lost", "doubled", "false", "untidy")}
    assert found == dict.fromkeys(found, 0), "\n".join(report["problems"])
    assert report["faults"] > 0
