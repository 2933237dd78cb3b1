"""For the tests of evaluation."""

import sys
from pathlib import Path

import pytest
from helpers.evaluation import Cli, Ended, write_clips, write_split


@pytest.fixture
def dialog_eval(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`dialog-eval` in this process."""
    from dialog_eval import cli

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dialog-eval", *map(str, arguments)])
        capfd.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as ending:
            code = ending.code or 0
        return Ended(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 scenes of the embedded world: images/, vqa/, retrieval/. Not to be written to."""
    return write_split(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a baseline and of a checkpoint with another text tower. Not to be written to."""
    return write_clips(tmp_path_factory.mktemp("clips"))
