"""For the tests of evaluation."""

from pathlib import Path

import pytest
from helpers.cli import Cli, cli_of
from helpers.evaluation import write_clips, write_split


@pytest.fixture
def dialog_eval(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`dialog-eval` in this process."""
    from dialog_eval import cli

    return cli_of("dialog-eval", cli.main, monkeypatch, capfd)


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 scenes of the embedded world: images/, vqa/, retrieval/. Not to be written to."""
    return write_split(tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a baseline and of a checkpoint with another text tower. Not to be written to."""
    return write_clips(tmp_path_factory.mktemp("clips"))
