"""`run --executor ray`: the rows are those of an undisturbed run in one process, whoever is killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.cli import Cli
from helpers.inputs import write_images
from helpers.ray_clusters import add_node, ray_cluster
from helpers.rows import rows_of
from helpers.swarm import Swarm

from dialog_gen.core.extras import install_command
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify

pytestmark = pytest.mark.filterwarnings("default")
slow = pytest.mark.slow
IMAGES, SHARDS = 240, 60
SLOWLY: dict[str, Any] = {"DELAY_S": 0.3, "TOGETHER": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_cluster(nodes=2) as made:
        yield made


@pytest.fixture
def on_ray(cluster: Any) -> tuple[object, ...]:
    return ("--max-in-flight", 2, "--executor", "ray", "--ray-address", cluster.address, "--engines", 2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("swarm") / "images", IMAGES)


@pytest.fixture(scope="module")
def undisturbed(images: Path) -> Path:
    Swarm(images, images.parent / "undisturbed").finish()
    return images.parent / "undisturbed"


def assert_equal(out: Path, undisturbed: Path) -> None:
    """The same rows in the same shards, and nothing left over."""
    assert len(rows_of(out)) == IMAGES
    assert rows_of(out) == rows_of(undisturbed)
    assert DatasetFolder(str(out)).shards() == DatasetFolder(str(undisturbed)).shards()
    assert verify(DatasetFolder(str(out))).problems == []
    # This bucket has folders.
    assert [path for path in (out / ".tmp").rglob("*") if path.is_file()] == []


@slow
def test_two_actors(images: Path, undisturbed: Path, tmp_path: Path, on_ray: tuple[object, ...]) -> None:
    run = Swarm(images, tmp_path / "out", *on_ray, "--json", TOGETHER=2)
    code, said, err = run.end()
    assert (code, err) == (0, [])
    assert run.survivors() == []
    assert_equal(tmp_path / "out", undisturbed)
    assert len({run.process.pid, *(bee.worker for bee in run.bees)}) == 3
    report = json.loads(said)["run"]
    assert (report["images"], report["shards"]) == (IMAGES, SHARDS)
    assert sorted(report["engines"]) == ["0", "1"]


@slow
@pytest.mark.parametrize("whose", ["worker", "engine"])
def test_a_killed_actor(
    images: Path, undisturbed: Path, tmp_path: Path, on_ray: tuple[object, ...], whose: str
) -> None:
    run = Swarm(images, tmp_path / "out", *on_ray, **SLOWLY, AWAITED=3)
    run.wait_until(lambda: len(run.bees) == 2)
    os.kill(getattr(run.bees[1], whose), signal.SIGKILL)
    code, _, err = run.end()
    assert (code, len(err)) == (0, 1), err
    assert {"worker": "its process is gone", "engine": "the swarm is gone"}[whose] in err[0]
    assert run.survivors() == []
    assert_equal(tmp_path / "out", undisturbed)


@slow
def test_nodes_come_and_go(
    images: Path, undisturbed: Path, tmp_path: Path, cluster: Any, on_ray: tuple[object, ...]
) -> None:
    joining = add_node(cluster, 2)
    run = Swarm(images, tmp_path / "out", *on_ray[:-1], 3, DELAY_S=1, TOGETHER=3, AWAITED=4)
    run.wait_until(lambda: len(run.bees) == 3)
    cluster.remove_node(joining, allow_graceful=False)
    add_node(cluster, 3)
    run.wait_until(lambda: len(run.bees) == 4)
    code, said, err = run.end()
    # A worker in place of the first may have been put on the node that was about to leave.
    assert (code, len(err)) in ((0, 1), (0, 2)), err
    assert all("its process is gone" in line for line in err)
    assert "raylet" not in said
    assert_equal(tmp_path / "out", undisturbed)


@slow
@pytest.mark.parametrize("then", ["ray", "local"])
def test_a_killed_driver(
    images: Path, undisturbed: Path, tmp_path: Path, on_ray: tuple[object, ...], then: str
) -> None:
    run = Swarm(images, tmp_path / "out", *on_ray, **SLOWLY)
    run.wait_for_shards(2)
    run.process.kill()
    run.process.wait(20)
    assert run.survivors() == []
    assert 2 * 4 <= len(rows_of(tmp_path / "out")) < IMAGES
    last = Swarm(images, tmp_path / "out", *(on_ray if then == "ray" else ())).finish()
    assert 0 < len(last.bees) <= 2
    assert_equal(tmp_path / "out", undisturbed)


@slow
def test_what_began_locally_is_finished_on_ray(
    images: Path, undisturbed: Path, tmp_path: Path, on_ray: tuple[object, ...]
) -> None:
    Swarm(images, tmp_path / "out", "--limit", 12).finish()
    Swarm(images, tmp_path / "out", *on_ray).finish()
    assert_equal(tmp_path / "out", undisturbed)


@slow
def test_an_object_store(images: Path, undisturbed: Path, tmp_path: Path, on_ray: tuple[object, ...]) -> None:
    """The actors upload, the driver moves."""
    Swarm(images, f"bucket://{tmp_path}/out", *on_ray, TOGETHER=2).finish()
    assert_equal(tmp_path / "out", undisturbed)


@slow
def test_without_an_address_a_ray_is_started_and_ended(undisturbed: Path) -> None:
    """Nothing of Ray's own is printed, and nothing is left of it."""
    command = [sys.executable, "-m", "dialog_gen.cli.app", "verify", str(undisturbed), "--executor", "ray"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        environment["TMPDIR"] = folder
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        left = list(Path(folder).iterdir())
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert f"{IMAGES} images in {SHARDS} shards" in done.stdout
    assert left == []


@slow
@pytest.mark.parametrize("moment", ["DashboardAgent", "bee"])
def test_ctrl_c_ends_the_ray_that_was_started(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    images = undisturbed.parent / "images"
    run = Swarm(images, tmp_path / "out", "--executor", "ray", "--engines", 1, DELAY_S=0.5)
    started = set[psutil.Process]()

    def reached() -> bool:
        started.update(run.process.children(recursive=True))
        return bool(run.bees) if moment == "bee" else any(moment in _title(process) for process in started)

    run.wait_until(reached)
    os.killpg(run.process.pid, signal.SIGINT)
    code, _, err = run.end()
    assert (code, err) == (130, ["interrupted: what is finished is kept, the same command goes on from there"])
    assert run.survivors() == []
    _, left = psutil.wait_procs(started, timeout=120)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.parametrize("command", ["run", "verify", "gate", "compact", "repair"])
def test_an_address_without_a_cluster(
    command: str, images: Path, undisturbed: Path, tmp_path: Path, dialog_gen_cli: Cli
) -> None:
    arguments: dict[str, list[object]] = {
        "run": ["--model", "shapes-llava", "--images", images, "--out", tmp_path / "out"],
        "compact": [undisturbed, "--out", tmp_path / "out"],
    }
    before = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ended = dialog_gen_cli(
            command, *arguments.get(command, [undisturbed]), "--executor", "ray", "--ray-address", "127.0.0.1:9"
        )
    assert time.monotonic() - before < 60
    assert "--ray-address 127.0.0.1:9: there is no Ray cluster" in ended.mistake
    assert not (tmp_path / "out").exists()


def test_an_address_without_ray(undisturbed: Path, dialog_gen_cli: Cli) -> None:
    ended = dialog_gen_cli("verify", undisturbed, "--ray-address", "127.0.0.1:9")
    assert "only --executor ray uses a cluster" in ended.mistake


def test_ray_is_not_installed(undisturbed: Path, dialog_gen_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    ended = dialog_gen_cli("verify", undisturbed, "--executor", "ray")
    assert install_command("ray") in ended.mistake
