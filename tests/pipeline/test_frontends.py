"""One vLLM core with several clients in processes of their own, on the embedded model."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers.forks import FORKS
from helpers.frontends import Client, own_a_core, processes_of, spec_of, texts

from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import EngineCore

IMAGES = 48
MANY = 2000  # as many as nobody waits for


@pytest.fixture(scope="module")
def alone(forked_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The answers of an engine of this process."""
    return texts(spec_of(), tmp_path_factory.mktemp("alone") / "alone.log", range(IMAGES))


@pytest.fixture(scope="module")
def core(forked_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineCore]:
    log = tmp_path_factory.mktemp("core") / "core.log"
    log.touch()
    started = spec_of().start_core(log, clients=5)
    yield started
    started.close()
    assert not Path(started.addresses[0].places["alive"]).parent.exists()


@pytest.mark.slow
def test_two_clients_get_the_texts_of_one_engine(alone: list[str], core: EngineCore, tmp_path: Path) -> None:
    half = IMAGES // 2
    clients = [
        Client(spec_of(), core.addresses[k], tmp_path / f"{k}.log", range(k * half, (k + 1) * half)) for k in range(2)
    ]
    assert [client.receive() for client in clients] == ["asked"] * 2
    by_two = sum((client.receive() for client in clients), list[str]())
    assert by_two == alone
    assert len(set(by_two)) > half


@pytest.mark.slow
def test_a_killed_client_leaves_the_core_to_the_others(core: EngineCore, tmp_path: Path) -> None:
    killed = Client(spec_of(), core.addresses[2], tmp_path / "killed.log", range(MANY))
    other = Client(spec_of(), core.addresses[3], tmp_path / "other.log", range(IMAGES))
    assert killed.receive() == "asked"
    killed.process.kill()
    assert other.receive() == "asked"
    assert len(other.receive()) == IMAGES
    assert psutil.pid_exists(*processes_of(core))


@pytest.mark.slow
def test_a_killed_core_ends_its_clients(core: EngineCore, tmp_path: Path) -> None:
    """The last test with this core."""
    client = Client(spec_of(), core.addresses[4], tmp_path / "client.log", range(MANY))
    assert client.receive() == "asked"
    (pid,) = processes_of(core)
    psutil.Process(pid).kill()
    core.wait()
    assert isinstance(client.receive(30), str)


@pytest.mark.slow
def test_a_core_ends_with_its_owner(tmp_path: Path) -> None:
    pipe, theirs = FORKS.Pipe()
    owner = FORKS.Process(target=own_a_core, args=(tmp_path / "log", theirs))
    owner.start()
    assert pipe.poll(300)
    pids = pipe.recv()
    assert pids
    owner.kill()
    owner.join()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=120)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_an_engine_without_the_ability_says_so(tmp_path: Path) -> None:
    spec = spec_of("transformers")
    said = "^--frontends 2: the engine transformers cannot be fed by several processes; leave it out.$"
    spec.check_shared(1)
    with pytest.raises(UsageError, match=said):
        spec.check_shared(2)
    with pytest.raises(UsageError, match=said):
        spec.start_core(tmp_path / "log", clients=2)
    assert (spec.is_shared, spec_of().is_shared) == (False, True)
