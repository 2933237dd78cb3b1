"""Trainings in processes of their own, alone or several together."""

import importlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

from helpers.forks import run_together

Steps = list[tuple[int, dict[str, float]]]
"""What `on_step` heard, of all processes: the step and its values."""


def trainer(name: str) -> Any:
    """Finds a trainer by "module:function"; `helpers.systems` says what one is."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def run_training(
    name: str,
    out: Path,
    changes: dict[str, Any],
    *,
    processes: int = 1,
    nodes: int = 1,
    killed_after: int | None = None,
    **options: Any,
) -> Steps:
    """Trains to OUT in so many processes on each of so many nodes, all of which are this machine.

    OUT/first.safetensors is the checkpoint of the first step, if one was written. With `killed_after`, SIGKILL ends the
    processes after that step. Raises AssertionError with what was said if a process ends in another way.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    given = [{**os.environ, **place} for place in places(processes, nodes)]
    done = run_together(_train, name, out, changes, killed_after, options, environments=given)
    code = 0 if killed_after is None else -signal.SIGKILL
    assert [process.returncode for process in done] == [code] * len(done), "".join(process.stderr for process in done)
    heard = [_steps_file(out, rank) for rank in range(len(done))]
    return [tuple(json.loads(line)) for file in heard for line in file.read_text().splitlines()]


def embed_and_die(dialogues: Path, clip: Path, out: Path) -> None:
    """Computes image vectors until the process kills itself, in the second shard."""
    from dialog_gen.clip.loader import load_clip
    from dialog_gen.dataset.folder import DatasetFolder
    from dialog_train.data.vectors import embed_dataset

    def on_progress(stage: str, done: int, *_: object) -> None:
        if done > 25:
            os.kill(os.getpid(), signal.SIGKILL)

    dataset = DatasetFolder.existing(str(dialogues))
    embed_dataset(dataset, load_clip(str(clip)), out, batch_size=7, on_progress=on_progress)


def places(processes: int, nodes: int) -> list[dict[str, str]]:
    """The variables that tell each process its place, as `torchrun` sets them."""
    shared = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if processes * nodes == 1:
        return [shared]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(nodes * processes)}
    shared |= {"LOCAL_WORLD_SIZE": str(processes), "GROUP_WORLD_SIZE": str(nodes)}
    return [
        {**shared, "RANK": str(node * processes + rank), "LOCAL_RANK": str(rank), "GROUP_RANK": str(node)}
        for node in range(nodes)
        for rank in range(processes)
    ]


def _train(name: str, out: Path, changes: dict[str, Any], killed_after: int | None, options: dict[str, Any]) -> None:
    with _steps_file(out, int(os.environ.get("RANK", "0"))).open("w", buffering=1) as heard:

        def on_step(step: int, values: dict[str, float]) -> None:
            heard.write(json.dumps([step, dict(values)]) + "\n")
            if step == 2:
                # The first step's averages of the gradient are the gradient, times 1 - beta.
                state = out / "checkpoints" / "step-00000001.safetensors"
                if state.exists():
                    shutil.copy(state, out / "first.safetensors")
            if step == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        trainer(name)(out, changes, **{"on_step": on_step, **options})


def _steps_file(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}-{rank}.steps")
