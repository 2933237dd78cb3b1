"""Parts of a run, one after the other: what they make, and when run.json appears."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers.engine import ScriptedEngine
from helpers.inputs import write_images
from helpers.rows import rows_of

from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation.part import Part, put_report
from dialog_gen.generation.run import generate
from dialog_gen.upkeep.repair import repair

IMAGES = 22  # in 11 shards


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def start(spec: EngineSpec, log: Path) -> ScriptedEngine:
        return ScriptedEngine().start(log)

    monkeypatch.setattr(EngineSpec, "start", start)
    return {"model": "shapes-llava", "images": write_images(tmp_path / "images", IMAGES), "shard_size": 2}


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    yield f"memory://{tmp_path.name}/out"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def shards_of(out: str) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in DatasetFolder(out).shards()]


def report_of(out: str, name: str = "run.json") -> dict[str, Any]:
    return unsealed(DatasetFolder(out).read(name))


def test_the_part_that_completes_the_dataset_says_so(out: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = DatasetFolder(out)
    first = generate(**settings, out=out, part="2/3", limit=20)
    assert (first.images, shards_of(out)) == (6, [2, 5, 8])
    generate(**settings, out=out, part="2/3")
    generate(**settings, out=out, part="0/3")
    assert shards_of(out) == [0, 2, 3, 5, 6, 8, 9]
    assert not folder.exists("run.json")
    last = generate(**settings, out=out, part="1/3")
    assert (last.images, last.accepted) == (IMAGES, IMAGES)
    whole = report_of(out)
    assert (whole["dataset"]["images"], whole["dataset"]["shards"], whole["run"]["parts"]) == (IMAGES, 11, 3)
    assert (whole["run"]["images"] + whole["run"]["images_already_done"], whole["run"]["shards"]) == (IMAGES, 11)
    assert report_of(out, "run-1-of-3.json")["part"] == "1-of-3"
    assert verify(out).problems == []
    generate(**settings, out=tmp_path / "undisturbed")
    undisturbed = DatasetFolder(str(tmp_path / "undisturbed"))
    columns = ["image_id", "texts", "sampling", "attempts"]
    assert list(folder.rows(columns)) == list(undisturbed.rows(columns))


def test_the_costs_of_all_parts(out: str) -> None:
    """`plan --from` divides the images a second of all parts by the GPUs."""
    config = {"config": {}, "dataset": {"images": 22}}
    with open_writer(out, {"schema_version": SCHEMA_VERSION}) as store:
        for index, images in enumerate((100, 300)):
            cost = {"gpus": 8, "gpu_hours": 1.5, "gpu_hour_price": 2.0, "per_million_images": 3.0}
            summary = {**config, "run": {"images": images, "images_per_second": 10.0}, "cost": cost}
            put_report(store, Part(index, 2), summary, is_complete=index == 1)
    whole = report_of(out)
    assert (whole["cost"]["gpus"], whole["cost"]["gpu_hours"], whole["run"]["images_per_second"]) == (16, 3.0, 20.0)
    assert whole["cost"]["per_million_images"] == pytest.approx(3.0 * 2.0 / 400 * 1e6)


def test_a_run_without_parts_goes_on(out: str, settings: dict[str, Any]) -> None:
    generate(**settings, out=out, part="1/2")
    whole = generate(**settings, out=out)
    assert (whole.images, whole.summary["run"]["images"], whole.summary["run"]["images_already_done"]) == (22, 12, 10)
    assert report_of(out) == whole.summary
    # A part that has nothing to do any more changes no figure of the dataset.
    generate(**settings, out=out, part="0/2")
    assert report_of(out) == whole.summary


def test_gates_wait_for_all_parts(out: str, settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    result = generate(**settings, out=out, part="0/2", gates="length")
    assert "gates" not in result.summary
    assert f"run `dialog-gen gate {out} --gates length` when all are done" in caplog.text


def test_a_part_and_a_whole_run_exclude_each_other(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(**settings, out=out, part="0/2")
    config = DatasetFolder(str(out)).config()
    with open_writer(str(out), config), pytest.raises(UsageError, match="another run is writing"):
        generate(**settings, out=out, part="1/2")
    with open_writer(str(out), config, shared=True):
        generate(**settings, out=out, part="1/2")
        with pytest.raises(UsageError, match="another run is writing"):
            generate(**settings, out=out)
    assert len(rows_of(out)) == IMAGES


def test_a_repair_makes_what_was_lost_not_the_other_parts(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(**settings, out=out, part="0/2", engines=1)
    before = rows_of(out)
    (out / "data" / "images-000004.parquet").write_bytes(b"PAR1 damaged")
    repair(str(out))
    assert shards_of(str(out)) == [0, 2, 4, 6, 8, 10]
    assert rows_of(out) == before
    generate(**settings, out=out, part="1/2")
    (out / "data" / "images-000003.parquet").unlink()
    repair(str(out))
    assert len(rows_of(out)) == IMAGES


@pytest.mark.parametrize(
    "text", ["", "x", "1", "1/", "/2", "-1/2", "1/-2", "1.0/2", "2/2", "0/0", "٣/٤", "1/2/3", " 0/2"]
)
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(UsageError, match=r"--part .*(is no part|does not exist)"):
        Part.parse(text)


def test_parts_share_the_shards() -> None:
    for count in (1, 2, 3, 7):
        shares = [list(Part.parse(f"{index}/{count}").of(iter(range(5)))) for index in range(count)]  # type: ignore[arg-type]
        assert sorted(shard for share in shares for shard in share) == list(range(5))  # type: ignore[type-var]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
