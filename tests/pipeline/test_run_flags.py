"""`dialog-gen run` with the flags of engines and images: wrong values, a real model, and datasets made before."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.architectures import random_model
from helpers.cli import Cli
from helpers.inputs import write_images
from helpers.rows import files_of, rows_of

RUN = ("run", "--model", "shapes-llava", "--images", "images", "--out", "out", "--engine", "transformers")
# The configuration that this command had when pixels, stop strings and the like became settings: a dataset that was
# made then can be continued as long as it is the same.
BEFORE: dict[str, Any] = {
    "schema_version": 3,
    "shard_size": 1024,
    "model": "shapes-llava",
    "dtype": "float32",
    "max_model_len": 512,
    "engine": "transformers",
    "deterministic": False,
    "protocol": "llava-3qa",
    "prompt_sha256": "d6e7cd37b47777535e57d219860e11f446e4a4c0f3d2406d9958ec2fdc6ac2d9",
    "temperature": 0.7,
    "top_p": 0.9,
    "max_tokens": 192,
    "attempts": 3,
    "seed": 0,
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_images(tmp_path / "images", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its processor takes 112 x 112 pixels at most."""
    return str(random_model("qwen2.5-vl", tmp_path_factory.mktemp("models") / "qwen"))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-pixels", "0"),
        ("--min-pixels", "-4"),
        ("--max-pixels", "many"),
        ("--max-pixels", "1.5"),
        ("--max-model-len", "0"),
    ],
)
def test_values_that_are_none(dialog_gen_cli: Cli, workplace: Path, flag: str, value: str) -> None:
    before = files_of(workplace)
    ended = dialog_gen_cli(*RUN, flag, value)
    assert (ended.code, ended.out) == (2, "")
    assert ended.mistake.startswith(f"error: {flag} {value}: must be ")
    assert files_of(workplace) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--min-pixels", "9", "--max-pixels", "4"), "--min-pixels 9 is more than --max-pixels 4"),
        (("--max-model-len", "40"), "more than shapes-llava's context of 40"),
        (("--max-model-len", "99999999"), "--max-model-len 99999999 is more than shapes-llava's own context of "),
        (("--max-tokens", "9000"), "--max-tokens 9000"),
        (("--engine", "transfomers"), "did you mean 'transformers'"),
        (("--kv-cache-dtype", "fp8"), "--kv-cache-dtype fp8: the engine transformers has no such setting"),
        (("--max-num-seqs", "4"), "--max-num-seqs 4: the engine transformers has no such setting"),
        (("--endpoint", "http://localhost:1/v1"), "the engine transformers runs the model itself"),
        (("--dtype", "float23"), "--dtype float23: did you mean 'float32'"),
        (
            ("--engine", "openai", "--endpoint", "http://localhost:1/v1", "--max-pixels", "9"),
            "--max-pixels 9: the engine openai sends images to a server; use --image-max-side",
        ),
    ],
)
def test_values_that_do_not_fit(dialog_gen_cli: Cli, workplace: Path, flags: tuple[str, ...], said: str) -> None:
    before = files_of(workplace)
    assert said in dialog_gen_cli(*RUN, *flags).mistake
    assert files_of(workplace) == before


def test_the_least_pixels_are_not_more_than_the_models_most(dialog_gen_cli: Cli, workplace: Path, qwen: str) -> None:
    asked = ("run", "--model", qwen, "--images", "images", "--out", "out", "--engine", "transformers", "--dry-run")
    ended = dialog_gen_cli(*asked, "--min-pixels", "20000")
    assert (
        "--min-pixels 20000 is more than the 12544 pixels that an image of qwen has at most by default" in ended.mistake
    )
    ended = dialog_gen_cli(*asked, "--min-pixels", "20000", "--max-pixels", "30000")
    assert ended.code == 0
    assert "max_pixels: 30000" in ended.out
    assert not (workplace / "out").exists()


@pytest.mark.slow
def test_a_dataset_made_before_is_continued_with_the_same_settings_alone(dialog_gen_cli: Cli, workplace: Path) -> None:
    few = (*RUN, "--limit", "2", "--max-losses", "1")
    assert dialog_gen_cli(*few).code == 0
    out = workplace / "out"
    config = json.loads((out / "config.json").read_text())
    assert {key: config.get(key) for key in BEFORE} == BEFORE
    assert config.keys() - BEFORE.keys() == {"images", "model_revision"}
    before = files_of(out)
    made = rows_of(out)
    assert made
    for flags, keys in (
        (("--max-pixels", "2000"), ["max_pixels"]),
        (("--min-pixels", "100"), ["min_pixels"]),
        (("--max-model-len", "500"), ["max_model_len"]),
        (("--dtype", "bfloat16"), ["dtype"]),
        (("--temperature", "0.5"), ["temperature"]),
    ):
        ended = dialog_gen_cli(*few, *flags).mistake
        assert [key for key in keys if key not in ended] == []
        assert "needs a new --out" in ended
        assert files_of(out) == before
    # The same again makes nothing; one image more makes its shard again.
    assert dialog_gen_cli(*few).code == 0
    assert rows_of(out) == made
    assert dialog_gen_cli(*RUN, "--max-losses", "1").code == 0
    again = {row["image_id"]: row["texts"] for row in rows_of(out)}
    assert {row["image_id"]: row["texts"] for row in made}.items() <= again.items()
    assert dialog_gen_cli("verify", "out").code == 0
