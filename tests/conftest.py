"""For all tests."""

import os
import signal
from collections.abc import Iterator

import pytest
from helpers.cli import Cli, cli_of
from hypothesis import settings

# The same examples in every run, and no failure because a machine is slow.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


# A shell starts what it puts in the background with Ctrl-C ignored, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """What tests write need not outlive a power cut; most of their time would go there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def dialog_gen_cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`dialog-gen` in this process."""
    from dialog_gen.cli import app as cli

    return cli_of("dialog-gen", cli.main, monkeypatch, capfd)
