"""A damaged checkpoint folder never loads as another model."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.close import train_close
from helpers.loops import train_third_tower
from helpers.mammut import write_mammut
from helpers.training import write_tiny_clip

from dialog_gen.clip.base import CLIP_MODELS, GENERATION, SEARCH
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.open_clip.layout import WEIGHTS_FILE
from dialog_gen.core.errors import UsageError


def _third_tower(folder: Path) -> Path:
    train_third_tower(folder, {"max_steps": 1})
    return folder / "model"


def _close(folder: Path) -> Path:
    train_close(folder, {"max_steps": 1})
    return folder / "model"


def _mammut(folder: Path) -> Path:
    return write_mammut(folder, questions=["What is it?"])


MAKERS: dict[str, Callable[[Path], Path]] = {
    "open_clip": lambda folder: write_tiny_clip(folder, seed=0),
    "mammut": _mammut,
    "third tower": _third_tower,
    "close": _close,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_forty_flipped_bytes_in_any_file(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = MAKERS[kind](tmp_path / "made")
    needs = GENERATION if kind == "close" else SEARCH
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "protocol.toml"]
    assert len(files) > 2
    rng = random.Random(kind)
    for file in files:
        good = file.read_bytes()
        content = bytearray(good)
        for place in rng.sample(range(len(content)), min(40, len(content))):
            content[place] ^= rng.randrange(1, 256)
        for bad in (bytes(content), good[: len(good) // 2], b""):
            file.write_bytes(bad)
            with pytest.raises(UsageError, match=r"is damaged.*anew\."):
                load_clip(str(folder), needs=needs)
        file.unlink()
        if file.name != "checksums.json":
            with pytest.raises(UsageError, match=f"{file.name} cannot be read"):
                load_clip(str(folder), needs=needs)
        file.write_bytes(good)


def test_questions_may_be_changed(tmp_path: Path) -> None:
    folder = _mammut(tmp_path / "made")
    (folder / "protocol.toml").write_text("changed")
    load_clip(str(folder), needs=SEARCH)


def test_weights_of_a_damaged_folder_by_their_path(tmp_path: Path) -> None:
    weights = write_tiny_clip(tmp_path / "made", seed=0) / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-8] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UsageError, match="is damaged"):
        load_clip("ViT-B-32", str(weights))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", None, "has no padding token"),
        ("tokenizer.json", None, "cannot be read: .*"),
        ("tokenizer.json", "{}", "cannot be read: .*"),
        ("tokenizer.json", '{"version": ', "cannot be read: .*"),
    ],
)
def test_a_damaged_tokenizer_of_a_folder_without_checksums(
    tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    folder = shutil.copytree(CLIP_MODELS.get("shapes-clip"), tmp_path / "model")
    (folder / "checksums.json").unlink(missing_ok=True)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(UsageError) as caught:
        load_clip(str(folder))
    advice = r"\. Are all files of its tokenizer there, and whole\?"
    assert re.fullmatch(f"the tokenizer of model {said}{advice}", str(caught.value))
