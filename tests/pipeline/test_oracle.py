"""Dialogues made from scene graphs."""

from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.inputs import write_tar
from helpers.rows import rows_of

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.errors import OtherConfigError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.shapes import oracle, truth
from dialog_gen.shapes.files import ShapesSubset, write_files
from dialog_gen.shapes.oracle import write_dialogues
from dialog_gen.shapes.truth import load_scenes, measure_truth
from dialog_gen.shapes.worlds import WORLDS

LIMIT = 12


def write_world(root: Path, name: str, split: str = "train") -> Path:
    """Images in tars as img2dataset writes them, and the files beside them."""
    world: Any = WORLDS[name]
    subset = ShapesSubset(split=split, seed=1, limit=LIMIT, shard_size=8, world=world)
    write_files(root, subset)
    for tar, indices in subset.shards().items():
        members: dict[str, bytes] = {}
        for index in indices:
            key = subset.image_id(index).split("/")[1]
            members |= {
                f"{key}.png": world.render_png(subset.scene(index)),
                f"{key}.txt": subset.caption(index).encode(),
            }
        (root / "images").mkdir(exist_ok=True)
        write_tar(root / "images" / f"{tar}.tar", members)
    return root


@pytest.mark.parametrize("name", WORLDS)
def test_every_pair_is_true_and_the_dataset_verifies(tmp_path: Path, name: str, dialog_gen_cli: Cli) -> None:
    world = write_world(tmp_path / "world", name)
    assert write_dialogues(world, str(tmp_path / "out")) == LIMIT
    measured = measure_truth(DatasetFolder(str(tmp_path / "out")), load_scenes(world))
    assert (measured.images, measured.asked.total(), measured.rate) == (LIMIT, 3 * LIMIT, 1.0)
    assert dialog_gen_cli("verify", str(tmp_path / "out"), "--deep").code == 0
    assert dialog_gen_cli("stats", str(tmp_path / "out")).code == 0
    rows = rows_of(tmp_path / "out")
    assert all(row["caption"] for row in rows)
    assert len({pair["user"] for row in rows for pair in row["texts"]}) > LIMIT


def test_the_same_seed_gives_the_same_rows_and_finished_shards_are_kept(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", "shapes-2")
    write_dialogues(world, str(tmp_path / "a"))
    first = rows_of(tmp_path / "a", volatile=True)
    assert write_dialogues(world, str(tmp_path / "a")) == LIMIT
    assert rows_of(tmp_path / "a", volatile=True) == first
    write_dialogues(world, str(tmp_path / "b"))
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    write_dialogues(world, str(tmp_path / "c"), seed=1)
    assert [row["texts"] for row in rows_of(tmp_path / "c")] != [row["texts"] for row in first]


def test_dialogues_about_other_images_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    world, other = write_world(tmp_path / "world", "shapes-2"), write_world(tmp_path / "other", "shapes-2")
    write_dialogues(world, str(tmp_path / "out"))
    before = rows_of(tmp_path / "out")
    with pytest.raises(UsageError, match="images"):
        write_dialogues(other, str(tmp_path / "out"))
    assert rows_of(tmp_path / "out") == before


def test_scenes_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read .*give the folder that `dialog-gen download` wrote"):
        load_scenes(tmp_path)
    for content in ("{", '"text"', "{}", '{"image_id": "0", "world": "none", "scene": {}}'):
        (tmp_path / "truth.jsonl").write_text(content)
        with pytest.raises(UsageError, match=r"truth\.jsonl is damaged: download the world again"):
            load_scenes(tmp_path)


def test_an_image_without_a_scene_is_refused(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world", "shapes-2")
    lines = (world / "truth.jsonl").read_text().splitlines(keepends=True)
    (world / "truth.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UsageError, match="no scene for image 00001/000013: give the world"):
        write_dialogues(world, str(tmp_path / "out"))


def test_dialogues_are_not_judged_by_another_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its images have the same ids."""
    world, other = write_world(tmp_path / "world", "shapes"), write_world(tmp_path / "other", "shapes", "val")
    write_dialogues(world, str(tmp_path / "out"))
    monkeypatch.setattr("sys.argv", ["truth", str(tmp_path / "out"), str(other)])
    with pytest.raises(SystemExit) as stopped:
        truth.main()
    assert stopped.value.code == 2
    assert "about another image 00000/000000 than" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["truth", str(tmp_path / "out"), str(world)])
    truth.main()
    assert "truth rate 100.0%: 36 of 36 pairs" in capsys.readouterr().out


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    world = write_world(tmp_path / "world", "shapes-2")
    monkeypatch.setattr("sys.argv", ["oracle", str(world), "--out", str(tmp_path / "out")])
    oracle.main()
    assert f"{LIMIT} dialogues of 3 pairs" in "".join(capsys.readouterr())
    monkeypatch.setattr("sys.argv", ["oracle", str(world), "--out", str(tmp_path / "one"), "--pairs", "1"])
    oracle.main()
    assert f"{LIMIT} dialogues of 1 pair\n" in "".join(capsys.readouterr())
    assert [len(row["texts"]) for row in rows_of(tmp_path / "one")] == [1] * LIMIT
    monkeypatch.setattr("sys.argv", ["oracle", str(tmp_path / "none"), "--out", str(tmp_path / "other")])
    with pytest.raises(SystemExit) as stopped:
        oracle.main()
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["oracle", str(world), "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as stopped:
        oracle.main()
    assert stopped.value.code == 2


@pytest.mark.parametrize("name", WORLDS)
def test_a_share_of_the_answers_is_false(tmp_path: Path, name: str) -> None:
    """The questions stay the same; a false answer is of the same kind, and what is false stays so at a lower truth."""
    world = write_world(tmp_path / "world", name)
    rows = {}
    for share in (1.0, 0.7, 0.0):
        write_dialogues(world, str(tmp_path / str(share)), truth=share)
        rows[share] = [pair for row in rows_of(tmp_path / str(share)) for pair in row["texts"]]
    assert len({tuple(pair["user"] for pair in pairs) for pairs in rows.values()}) == 1
    answers = {share: [pair["assistant"] for pair in pairs] for share, pairs in rows.items()}
    groups = WORLDS[name].answer_groups
    for true, some, none in zip(answers[1.0], answers[0.7], answers[0.0], strict=True):
        assert none != true
        assert some in (true, none)
        assert any({true, none} <= set(group) for group in groups)
    found = measure_truth(DatasetFolder(str(tmp_path / "0.7")), load_scenes(world))
    kept = sum(a == b for a, b in zip(answers[1.0], answers[0.7], strict=True))
    assert found.true.total() == kept
    assert 0.4 < found.rate < 0.95
    with pytest.raises(UsageError, match=r"--truth 1\.5: give the share"):
        write_dialogues(world, str(tmp_path / "out"), truth=1.5)


@pytest.mark.parametrize("name", WORLDS)
def test_longer_dialogues_begin_as_shorter_ones_and_ask_different_things(tmp_path: Path, name: str) -> None:
    world = write_world(tmp_path / "world", name)
    for pairs in (3, 5):
        write_dialogues(world, str(tmp_path / str(pairs)), pairs=pairs)
    for short, long in zip(rows_of(tmp_path / "3"), rows_of(tmp_path / "5"), strict=True):
        assert long["texts"][:3] == short["texts"]
        assert len({pair["user"] for pair in long["texts"]}) == 5
    with pytest.raises(UsageError, match=r"--pairs 99 is too many for image .*: the scene offers"):
        write_dialogues(world, str(tmp_path / "out"), pairs=99)
    with pytest.raises(UsageError, match="--pairs 0: give the number"):
        write_dialogues(world, str(tmp_path / "out"), pairs=0)
    with pytest.raises(OtherConfigError):
        write_dialogues(world, str(tmp_path / "3"), pairs=5)
