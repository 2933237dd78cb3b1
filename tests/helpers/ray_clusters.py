"""A Ray cluster of several nodes on this machine."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import dialog_gen

NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20}
TESTS = Path(__file__).parents[1]


def add_node(cluster: Any, number: int) -> Any:
    """Adds a node with one CPU. Its address is another one than the head's, to which drivers connect."""
    return _retried(lambda: cluster.add_node(**NODE, node_ip_address=f"127.0.0.{2 + number}"))


def _retried(add: Callable[[], Any]) -> Any:
    """Ray gives the start of a node up after 30 s, which a busy machine may need."""
    for _ in range(2):
        with suppress(Exception):
            return add()
    return add()


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Any]:
    """A cluster of a head without CPUs and of nodes with one CPU each; its workers find `helpers`."""
    paths = [str(Path(dialog_gen.__file__).parents[1]), str(TESTS), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster()
        _retried(lambda: cluster.add_node(**{**NODE, "num_cpus": 0}, include_dashboard=False))
        try:
            for number in range(nodes):
                add_node(cluster, number)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
