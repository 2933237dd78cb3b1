"""Two nodes of two processes each, as `torchrun` starts them on two machines; here both are this one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loops import train_sharded
from helpers.trainings import places, run_training
from safetensors.torch import load_file

NODES, PROCESSES = 2, 2


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("trainer", ["train_draft", "train_sharded"])
def test_two_nodes_train_what_one_process_trains(trainer: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 3, "save_every_steps": 2}
    heard = run_training(f"helpers.loops:{trainer}", tmp_path / "many", changes, processes=PROCESSES, nodes=NODES)
    alone = dict[int, Any]()
    train_sharded(tmp_path / "one", changes, on_step=lambda step, values: alone.update({step: dict(values)}))
    assert sorted(step for step, _ in heard) == sorted([*alone] * NODES * PROCESSES)
    for step, values in heard:
        assert values == pytest.approx(alone[step], rel=2e-5, abs=1e-7)
    assert json.loads((tmp_path / "many" / "train.json").read_text())["processes"] == NODES * PROCESSES
    first, second = (load_file(tmp_path / out / "model" / "open_clip_model.safetensors") for out in ("one", "many"))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
def test_torchrun_gives_processes_the_same_places(tmp_path: Path) -> None:
    """It is started on each node as on the others, but for the rank of the node."""
    expected = places(PROCESSES, NODES)
    names = sorted(expected[0].keys() - {"OMP_NUM_THREADS", "ACCELERATE_USE_CPU"})
    script = tmp_path / "script.py"
    script.write_text(f"import os\nos.write(1, (str([os.environ[name] for name in {names}]) + '\\n').encode())\n")
    port = expected[0]["MASTER_PORT"]
    shared = (sys.executable, "-m", "torch.distributed.run", "--nnodes", str(NODES), "--nproc_per_node", str(PROCESSES))
    shared += ("--master_addr", "127.0.0.1", "--master_port", port)
    nodes = [
        subprocess.Popen([*shared, "--node_rank", str(node), str(script)], stdout=subprocess.PIPE, text=True)
        for node in range(NODES)
    ]
    found = "".join(node.communicate(timeout=600)[0] for node in nodes)
    assert sorted(found.splitlines()) == sorted(str([place[name] for name in names]) for place in expected)
