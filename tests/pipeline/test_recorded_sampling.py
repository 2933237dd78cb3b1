"""What a protocol or a model says about decoding is in each row, also what most datasets leave at its default."""

from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_images
from helpers.rows import rows_of
from helpers.runs import run

import dialog_gen
from dialog_gen.generation.dialogue import DialogueGenerator
from dialog_gen.protocols.protocol import Protocol, Sampling
from dialog_gen.publish.card import make_card
from dialog_gen.publish.card_data import card_data

TURN = {"user": "Ask three. 1. Q: ... A: ...", "parse": "qa-list", "pairs": 3}
FURTHER: dict[str, Any] = {"top_k": 40, "repetition_penalty": 1.25, "stop": ["###", "\n\n"]}


def generator_of(sampling: dict[str, Any], fallback: DialogueGenerator | None = None) -> DialogueGenerator:
    name = "list" if fallback else "single"
    protocol = Protocol.model_validate({"name": name, "turns": [TURN]})
    return DialogueGenerator(
        protocol=protocol,
        chat_template=None,
        sampling=Sampling.model_validate(sampling),
        run_seed=0,
        attempts=1,
        fallback=fallback,
    )


def config_of(*samplings: dict[str, Any]) -> dict[str, Any]:
    recorded = [Sampling.model_validate(sampling).recorded() for sampling in samplings]
    return {**recorded[0], "fallbacks": recorded[1:]}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 6)


def made(images: Path, out: Path, *samplings: dict[str, Any]) -> Path:
    """A dataset with a reject; the last of the samplings is that of the run's own protocol."""
    generator: DialogueGenerator | None = None
    for sampling in reversed(samplings):
        generator = generator_of(sampling, generator)
    assert generator is not None
    engine = ScriptedEngine(malformed={sha256(png(3)): EVERY})
    run(images, out, engine, generator=generator, config=config_of(*samplings))
    return out


def samplings_of(out: Path) -> list[dict[str, Any]]:
    """The column `sampling` of all rows, without seeds."""
    rows = [*rows_of(out), *rows_of(out, "rejects")]
    return [{name: value for name, value in row["sampling"].items() if name != "seed"} for row in rows]


def test_rows_have_all_settings(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    out = made(images, tmp_path / "out", {"temperature": 0.5, "max_tokens": 9, **FURTHER})
    expected = {"temperature": 0.5, "top_p": 1.0, "max_tokens": 9, **FURTHER}
    assert samplings_of(out) == [expected] * 6
    assert dialog_gen_cli("verify", out).code == 0


def test_one_setting_is_enough(images: Path, tmp_path: Path) -> None:
    out = made(images, tmp_path / "out", {"stop": ["###"]})
    assert {tuple(found["stop"]) for found in samplings_of(out)} == {("###",)}
    assert {found["top_k"] for found in samplings_of(out)} == {0}


def test_a_fallbacks_settings_are_those_of_its_rows(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    out = made(images, tmp_path / "out", {}, {"top_k": 7})
    found = [(row["protocol"], row["sampling"]["top_k"]) for row in rows_of(out)]
    assert set(found) == {("list", 0)}
    assert [(row["protocol"], row["sampling"]["top_k"]) for row in rows_of(out, "rejects")] == [("single", 7)]
    assert dialog_gen_cli("verify", out).code == 0


def test_datasets_with_defaults_have_the_columns_they_had(images: Path, tmp_path: Path) -> None:
    out = made(images, tmp_path / "out", {})
    assert {tuple(found) for found in samplings_of(out)} == {("temperature", "top_p", "max_tokens")}


def test_the_settings_stay_when_rows_are_written_again(images: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    out = made(images, tmp_path / "out", FURTHER)
    before = samplings_of(out)
    assert dialog_gen_cli("gate", out, "--gates", "length").code == 0
    assert dialog_gen_cli("compact", out, "--out", tmp_path / "larger").code == 0
    for folder in (out, tmp_path / "larger"):
        assert samplings_of(folder) == before
        assert dialog_gen_cli("verify", folder).code == 0


def test_the_hubs_viewer_knows_the_fields(images: Path, tmp_path: Path) -> None:
    import datasets

    out = made(images, tmp_path / "out", FURTHER)
    files = sorted(map(str, (out / "data").iterdir()))
    loaded: Any = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert {name: loaded[0]["sampling"][name] for name in FURTHER} == FURTHER
    assert "repetition_penalty" in make_card(card_data(dialog_gen.open_dataset(out)), "me/mine")
