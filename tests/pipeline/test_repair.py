"""`repair`: whatever is damaged is found, set aside and made anew; the rows are those of the undisturbed dataset."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.cli import Cli
from helpers.crashes import Killed, killed_at
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_images
from helpers.rows import files_of, rows_of, sign

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.command import recorded_command
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.notes import REPAIR
from dialog_gen.dataset.repair import SET_ASIDE
from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.start import EngineSpec

IMAGES, SHARD_SIZE = 12, 4
KINDS = ("run", "gated", "compacted")
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def engine() -> "Any":
    scripted = ScriptedEngine(malformed={sha256(png(5)): EVERY})

    def start(spec: EngineSpec, log: Path) -> ScriptedEngine:
        scripted.closed = 0
        return scripted.start(log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EngineSpec, "start", start)
        yield scripted


def call(images: Path, out: Path, **others: Any) -> None:
    dialog_gen.generate(model="shapes-llava", images=images, out=out, shard_size=SHARD_SIZE, **others)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, engine: ScriptedEngine) -> Path:
    """Undisturbed datasets."""
    root = tmp_path_factory.mktemp("made")
    images = write_images(root / "images", IMAGES)
    call(images, root / "run")
    call(images, root / "gated")
    dialog_gen.gate(root / "gated", {"length": {"max": 4}, "set_duplicate": {}})
    dialog_gen.compact(root / "gated", root / "compacted", shard_mb=1)
    return root


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def out(made: Path, kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / kind, tmp_path / "out"))


def first(out: Path, part: str) -> Path:
    return min((out / part).iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside.txt").write_text("mine")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


def without_shard(out: Path) -> None:
    name = first(out, "shards").stem
    for path in out.rglob(f"{name}.*"):
        path.unlink()


DAMAGES: dict[str, Damage] = {
    "a flipped bit": lambda out: flip(first(out, "data")),
    "a flipped bit in a reject": lambda out: flip(first(out, "rejects")),
    "half a file": lambda out: first(out, "data").write_bytes(first(out, "data").read_bytes()[:999]),
    "no file": lambda out: first(out, "data").unlink(),
    "a folder for a file": lambda out: as_folder(first(out, "data")),
    "a sidecar of garbage": lambda out: first(out, "shards").write_bytes(b"\xff\0{"),
    "a sidecar of large numbers": lambda out: edit(first(out, "shards"), images=10**400),
    "a folder for a sidecar": lambda out: as_folder(first(out, "shards")),
    "no sidecar": lambda out: first(out, "shards").unlink(),
    "a sidecar of another name": lambda out: shutil.copy(first(out, "shards"), out / "shards/foreign.json"),
    "another configuration": lambda out: edit(first(out, "shards"), config_sha256="0" * 64),
    "wrong counts": lambda out: edit(first(out, "shards"), accepted=3, rejected=1, images=4),
    "no shard": without_shard,
    "strangers": lambda out: [(out / part / "mine.parquet").write_text("mine") for part in ("data", "rejects")],
    "a stranger among the sidecars": lambda out: (out / "shards/notes.txt").write_text("mine"),
    "a file for a folder": lambda out: as_file(out / "rejects"),
    "a file for all sidecars": lambda out: as_file(out / "shards"),
    "run.json is garbage": lambda out: (out / "run.json").write_text("{" * 9),
    "run.json is a folder, and a shard is gone": lambda out: (as_folder(out / "run.json"), without_shard(out)),
    "command.json is garbage": lambda out: (out / "command.json").write_text("[]"),
    "a letter in command.json": lambda out: edit(out / "command.json", command="Run"),
}
NOT_COMPACTED = {"command.json is garbage", "a letter in command.json"}
"""A compacted dataset does not say elsewhere what it was made of."""


def gates_hash(out: Path) -> set[str | None]:
    return {manifest.gates_sha256 for manifest in DatasetFolder(str(out)).manifests()}


def check_is(out: Path, undisturbed: Path) -> None:
    for part in ("data", "rejects"):
        assert rows_of(out, part) == rows_of(undisturbed, part)
    assert gates_hash(out) == gates_hash(undisturbed)
    assert dialog_gen.verify(out).problems == []
    assert not (out / REPAIR).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_repaired(
    made: Path, kind: str, out: Path, damage: str, engine: ScriptedEngine, dialog_gen_cli: Cli
) -> None:
    if kind == "compacted" and damage in NOT_COMPACTED:
        pytest.skip("see NOT_COMPACTED")
    whole = files_of(out)
    DAMAGES[damage](out)
    damaged = files_of(out)
    found = dialog_gen_cli("verify", out)
    assert found.code == 1
    assert f"\n`dialog-gen repair {out}` sets aside what is damaged and makes it anew\n" in found.out

    done = dialog_gen_cli("repair", out)
    assert (done.code, done.err) == (0, ""), done.out
    check_is(out, made / kind)
    assert f"{out}: 12 images: all as promised" in done.out
    # Nothing was deleted.
    kept = set(files_of(out).values())
    lost = {name for name, data in damaged.items() if data not in kept}
    assert lost <= {"run.json", "command.json", "repair.json"}
    # Healthy shards are not changed.
    now, remade = files_of(out), re.findall(r"^made (\S+) anew$", done.out, re.MULTILINE)
    if damage not in ("a file for all sidecars", "a file for a folder"):
        assert len(remade) <= 1
    healthy = [name for name in whole if "/" in name and not any(shard in name for shard in remade)]
    assert {name: now.get(name) for name in healthy} == {name: whole[name] for name in healthy}

    before, starts = files_of(out), engine.starts
    again = dialog_gen_cli("repair", out)
    assert (again.code, again.out) == (0, f"{out}: 12 images: all as promised, nothing to repair\n")
    assert (files_of(out), engine.starts) == (before, starts)


@pytest.mark.parametrize("kind", ["gated"], indirect=True)
@pytest.mark.parametrize("with_command", [True, False])
def test_the_gates_are_those_of_before(made: Path, out: Path, with_command: bool) -> None:
    (out / "gates.json").write_text("[")
    if with_command:
        assert dialog_gen.repair(out).problem is None
        check_is(out, made / "gated")
        assert unsealed((out / "gates.json").read_bytes()) == unsealed((made / "gated/gates.json").read_bytes())
        return
    (out / "command.json").unlink()
    rows = rows_of(out)
    assert dialog_gen.repair(out).set_aside == ["gates.json"]
    assert rows_of(out) == rows


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: (out / "config.json").write_text("{"),
        lambda out: (out / "config.json").unlink(),
        lambda out: as_folder(out / "config.json"),
        lambda out: edit(out / "config.json", seed=5),
    ],
    ids=["garbage", "gone", "a folder", "another seed"],
)
@pytest.mark.parametrize("left", ["command.json", "run.json", None])
def test_the_configuration_is_restored(
    made: Path, kind: str, out: Path, damage: Damage, left: str | None, dialog_gen_cli: Cli
) -> None:
    damage(out)
    for note in {"command.json", "run.json"} - {left}:
        (out / note).unlink()
    found = dialog_gen_cli("verify", out)
    assert found.code in (1, 2)
    assert "dialog-gen repair" in found.out + found.err
    # The run.json of a compacted dataset is that of its source.
    if left is None or (left == "run.json" and kind == "compacted"):
        before = files_of(out)
        with pytest.raises(UsageError, match=r"neither run\.json nor command\.json has the right one"):
            dialog_gen.repair(out)
        assert files_of(out) == before
        return
    dialog_gen.repair(out)
    assert json.loads((out / "config.json").read_text()) == json.loads((made / kind / "config.json").read_text())
    for part in ("data", "rejects"):
        assert rows_of(out, part) == rows_of(made / kind, part)


@pytest.mark.parametrize("kind", ["run"], indirect=True)
def test_a_run_restores_its_configuration(made: Path, out: Path) -> None:
    for note in ("command.json", "run.json", "config.json"):
        (out / note).unlink()
    with pytest.raises(UsageError, match="has shards but no config"):
        call(made / "images", out, seed=5)
    call(made / "images", out)
    check_is(out, made / "run")


def test_a_damaged_configuration_without_shards_blocks_no_run(made: Path, tmp_path: Path) -> None:
    """As a run leaves it that is killed before its first shard: its keys tell it from another program's."""
    config = json.loads((made / "run" / "config.json").read_text())
    with open_writer(str(tmp_path / "out"), config):
        pass
    file = tmp_path / "out" / "config.json"
    written = file.read_bytes()
    for bit in range(0, 8 * len(written), 5):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with open_writer(str(tmp_path / "out"), config):
            pass
        assert file.read_bytes() == written


@pytest.mark.slow
@pytest.mark.parametrize("next_one", ["repair", "run"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_anywhere(
    made: Path, kind: str, tmp_path: Path, next_one: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = Path(shutil.copytree(made / kind, tmp_path / "damaged"))
    flip(first(damaged, "rejects"))
    max((damaged / "shards").iterdir()).unlink()
    (damaged / "run.json").write_text("{")
    die_at = 0
    while True:
        out = Path(shutil.copytree(damaged, tmp_path / f"out-{die_at}"))
        with monkeypatch.context() as patch:
            killed_at(patch, die_at, before=before)
            try:
                dialog_gen.repair(out)
                break
            except Killed:
                pass
        if next_one == "repair":
            summary = dialog_gen.repair(out)
            assert summary.problem is None, (die_at, summary)
            check_is(out, made / kind)
        else:
            # It sees sizes only: what the repair did not reach stays as it is.
            if kind == "compacted":
                dialog_gen.compact(made / "gated", out, shard_mb=1)
            else:
                call(made / "images", out)
            if dialog_gen.verify(out).problem_count == 0:
                for part in ("data", "rejects"):
                    rows, wanted = rows_of(out, part), rows_of(made / kind, part)
                    assert [row | {"gates": None} for row in rows] == [row | {"gates": None} for row in wanted]
            assert dialog_gen.repair(out).problem is None
            check_is(out, made / kind)
        shutil.rmtree(out)
        die_at += 1
    assert die_at >= 5


@pytest.mark.parametrize("kind", ["run"], indirect=True)
def test_an_unfinished_run_is_not_continued(made: Path, out: Path, engine: ScriptedEngine) -> None:
    without_shard(out)
    (out / "run.json").unlink()
    flip(first(out, "data"))
    name = first(out, "shards").stem
    summary = dialog_gen.repair(out)
    assert (summary.made, summary.problem, summary.images, summary.unfinished) == ([name], None, 8, True)
    assert "the run never finished" in str(summary)
    assert not (out / "run.json").exists()
    call(made / "images", out)
    check_is(out, made / "run")


def test_only_a_limit_of_images(tmp_path: Path, engine: ScriptedEngine) -> None:
    images, out = write_images(tmp_path / "images", IMAGES), tmp_path / "out"
    call(images, out, limit=6)
    call(images, out, limit=2)
    whole = rows_of(out)
    for path in out.glob("*/*"):
        path.unlink()
    summary = dialog_gen.repair(out)
    assert (summary.images, len(summary.made), rows_of(out)) == (6, 2, whole)


def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path: Path, engine: ScriptedEngine) -> None:
    images, out = write_images(tmp_path / "images", IMAGES), tmp_path / "out"
    call(images, out)
    command = recorded_command(DatasetFolder(str(out)))
    assert command is not None
    assert command.arguments["images"] == str(images)
    edit(out / "command.json", **command.model_copy(update={"arguments": command.arguments | {"seed": 9}}).to_json())
    flip(first(out, "data"))
    damaged = first(out, "data").read_bytes()
    summary = dialog_gen.repair(out)
    assert summary.problem is not None
    assert "(seed: 0 there, 9 now)" in summary.problem
    assert damaged in files_of(out / SET_ASIDE).values()
    assert "was set aside and not made again" in dialog_gen.verify(out).problems[0]
    assert dialog_gen.repair(out).problem is not None
    call(images, out)
    assert dialog_gen.repair(out).problem is None


def test_an_image_that_is_gone_is_said(tmp_path: Path, engine: ScriptedEngine) -> None:
    images, out = write_images(tmp_path / "images", IMAGES), tmp_path / "out"
    call(images, out)
    for path in sorted(images.iterdir())[-4:]:
        path.unlink()
    flip(max((out / "data").iterdir()))
    summary = dialog_gen.repair(out)
    assert summary.images == 8
    assert summary.problem is not None
    assert "1 shard was set aside and not made again" in summary.problem


def test_a_removed_gates_file_is_missed(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made / "gated", tmp_path / "out"))
    (out / "gates.json").unlink()
    assert dialog_gen.verify(out).problems == ["gates.json is missing"]
    assert dialog_gen.repair(out).problem is None
    check_is(out, made / "gated")


def test_a_file_where_the_folder_of_a_repair_belongs(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made / "run", tmp_path / "out"))
    (out / SET_ASIDE).write_text("mine")
    flip(first(out, "data"))
    summary = dialog_gen.repair(out)
    assert (summary.problem, SET_ASIDE in summary.set_aside) == (None, True)
    assert [path.read_text() for path in out.glob(f"{SET_ASIDE}/*/{SET_ASIDE}")] == ["mine"]
    check_is(out, made / "run")


@pytest.mark.parametrize("has_manifest", [True, False])
def test_no_image_gets_into_two_shards(tmp_path: Path, engine: ScriptedEngine, has_manifest: bool) -> None:
    images, out = write_images(tmp_path / "images", IMAGES), tmp_path / "out"
    call(images, out)
    whole, moved = rows_of(out), sorted(images.iterdir())[0]
    flip(sorted((out / "data").iterdir())[1])
    if not has_manifest:
        sorted((out / "shards").iterdir())[1].write_text("{")
    moved.rename(tmp_path / moved.name)  # every image after it is in another place now
    summary = dialog_gen.repair(out)
    assert summary.problem is not None
    assert "has changed since shard" in summary.problem
    assert summary.made == []
    assert len(rows_of(out)) == IMAGES - SHARD_SIZE
    (tmp_path / moved.name).rename(moved)
    assert dialog_gen.repair(out).problem is None
    assert rows_of(out) == whole


@pytest.mark.parametrize("name", ["v2", "v2-gated"])
def test_an_older_dataset_without_its_command(tmp_path: Path, name: str) -> None:
    stored = Path(__file__).parents[1] / "data" / name
    whole, out = (Path(shutil.copytree(stored, tmp_path / copy)) for copy in ("whole", "out"))
    dialog_gen.upgrade(whole)
    flip(first(out, "data"))
    damaged = first(out, "data").read_bytes()
    summary = dialog_gen.repair(out)
    # Its images are not there any more.
    assert summary.problem is not None
    assert "memory://images/set.parquet" in summary.problem
    assert damaged in files_of(out / SET_ASIDE).values()
    assert rows_of(out) == rows_of(whole)[len(rows_of(whole)) - len(rows_of(out)) :]


def test_at_a_url(engine: ScriptedEngine, tmp_path: Path) -> None:
    images, url = write_images(tmp_path / "images", IMAGES), f"memory://{tmp_path.name}/out"
    call(images, url)  # pyright: ignore[reportArgumentType]
    folder = DatasetFolder(url)
    rows = [row["texts"] for row in folder.rows()]
    name = f"data/{folder.list('data')[0]}"
    damaged = bytearray(folder.read(name))
    damaged[len(damaged) // 2] ^= 1
    folder.fs.pipe_file(f"{folder.root}/{name}", bytes(damaged))
    summary = dialog_gen.repair(url)
    assert summary.problem is None
    assert [row["texts"] for row in folder.rows()] == rows
    (time,) = folder.list(SET_ASIDE)
    assert folder.read(f"{SET_ASIDE}/{time}/{name}") == bytes(damaged)


def test_no_password_is_written_down(tmp_path: Path) -> None:
    from dialog_gen.dataset.command import command_of

    command = command_of("run", {"endpoint": "http://me:secret@host:8000/v1", "images": "a"}, paths=["images"])
    assert command.arguments == {"endpoint": "http://host:8000/v1", "images": str(Path("a").absolute())}


def test_another_folder_is_no_dataset(tmp_path: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("repair", tmp_path)
    assert (ended.code, "is no dataset folder" in ended.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["run"], indirect=True)
def test_a_deep_repair_makes_images_anew_that_do_not_decode(made: Path, out: Path, dialog_gen_cli: Cli) -> None:
    data = first(out, "data")
    table = pq.read_table(data)
    rows = table.to_pylist()
    rows[0] |= {"images": [{"bytes": b"no image", "path": None}], "image_sha256": sha256(b"no image")}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), data)
    sign(out, data.stem)
    assert dialog_gen.repair(out).set_aside == []
    said = dialog_gen_cli("verify", str(out), "--deep")
    assert (said.code, f"`dialog-gen repair {out} --deep`" in said.out) == (1, True)
    ended = dialog_gen_cli("repair", str(out), "--deep")
    assert (ended.code, f"made {data.stem} anew" in ended.out) == (0, True)
    assert rows_of(out) == rows_of(made / "run")


def test_a_dataset_without_its_command_is_repaired_with_its_limits_of_pixels() -> None:
    from dialog_gen.upkeep import again

    assert {"max_pixels", "min_pixels"} <= set(again._SETTINGS)  # pyright: ignore[reportPrivateUsage]
