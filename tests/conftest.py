"""For all tests."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.cli import Cli, cli_of
from hypothesis import settings

# The same examples in every run, and no failure because a machine is slow.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


# A shell starts what it puts in the background with Ctrl-C ignored, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `tests/faults`; here, because pytest reads them before it knows that folder."""
    group = parser.getgroup("faults")
    group.addoption("--faults", type=int, default=60, help="Faults to inject, over all commands (default: 60).")
    group.addoption("--fault-seed", type=int, default=0, help="Other seeds draw other faults.")


LONGEST = (
    "tests/pipeline/test_exactly_once.py",
    "tests/pipeline/test_ray_run.py",
    "tests/faults/test_faults.py",
    "tests/pipeline/test_architectures.py",
    "tests/eval/test_reproduce_small.py",
    "tests/train/test_cli.py",
    "tests/pipeline/test_frontends.py",
    "tests/pipeline/test_engines.py",
)
"""The files that take longest. They come first, so that two processes that share the files end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called by pytest."""
    place = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))


def pytest_collection_finish() -> None:
    """Called by pytest."""
    from helpers.forks import start_server

    start_server()


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """What tests write need not outlive a power cut; most of their time would go there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def forked_vllm() -> None:
    """vLLM's engine cores are forks of this process."""
    from helpers.forks import fork_vllm

    fork_vllm()


@pytest.fixture
def dialog_gen_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`dialog-gen` in this process."""
    from dialog_gen.cli import app as cli

    return cli_of("dialog-gen", cli.main, monkeypatch, capfd)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small random model of an architecture, by its name in `helpers.architectures.KINDS`."""
    from helpers.architectures import random_model

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name == "smolvlm2":
            pytest.importorskip("num2words")
        if name not in made:
            made[name] = random_model(name, tmp_path_factory.mktemp("models") / name)
        return made[name]

    return get
