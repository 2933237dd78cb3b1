"""For the tests of training."""

from pathlib import Path

import pytest
from helpers.training import TINY_SHARDS, scene_row, write_dialogues, write_tiny_clip


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint, for `load_clip(str(tiny_clip))`. Not to be written to."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder: 48 scenes in three shards. Not to be written to."""
    numbers = iter(range(sum(TINY_SHARDS.values())))
    shards = {name: [scene_row(next(numbers)) for _ in range(count)] for name, count in TINY_SHARDS.items()}
    return write_dialogues(tmp_path_factory.mktemp("dialogues") / "set", shards)
