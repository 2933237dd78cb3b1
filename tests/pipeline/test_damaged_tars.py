"""Damaged tars: an error says so; none looks like a shorter tar, none is read for ever."""

import signal
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from helpers.inputs import png

from dialog_gen.core.errors import UsageError
from dialog_gen.sources.base import open_source

BLOCK, END = 512, bytes(1024)
HEADER_TYPES = (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE)


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that takes a minute is an endless one."""

    def stop(*_: object) -> None:
        raise AssertionError("endless")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size may be impossible, in GNU's base-256 form."""
    raw = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:BLOCK])
    raw[156:157] = kind
    raw[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % (1 << 88)).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % BLOCK)


def ids(folder: Path, content: bytes) -> list[str]:
    folder.mkdir(exist_ok=True)
    (folder / "t.tar").write_bytes(content)
    return [image_id for shard in open_source(str(folder), shard_size=2) for image_id in shard.image_ids()]


MEMBERS = [member(f"{number}.png", png(number)) for number in range(3)]


def test_padding_of_any_length(tmp_path: Path) -> None:
    for blocks in (1, 2, 20, 5000):
        assert ids(tmp_path / "in", b"".join(MEMBERS) + bytes(BLOCK * blocks)) == ["t/0", "t/1", "t/2"]


@pytest.mark.parametrize(
    "content",
    [
        MEMBERS[0] + END + MEMBERS[1] + END,  # two tars, joined
        MEMBERS[0] + bytes(BLOCK) + MEMBERS[1][BLOCK:] + MEMBERS[2] + END,  # a header that was overwritten
        MEMBERS[0] + END + bytes(BLOCK * 4000) + b"x",
    ],
)
def test_what_follows_the_end_is_not_lost_in_silence(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"t\.tar is damaged or cut short \(data after the end mark"):
        ids(tmp_path / "in", content)


@pytest.mark.parametrize("kind", HEADER_TYPES)
@pytest.mark.parametrize("size", [-1, -512, -1024, -4096, 2**40, 2**62, 2**63, 2**80])
def test_impossible_sizes(tmp_path: Path, kind: bytes, size: int) -> None:
    with pytest.raises(UsageError, match="damaged or cut short"):
        ids(tmp_path / "in", MEMBERS[0] + header("b.png", size, kind) + END)


def test_a_size_in_a_comment_that_leads_back(tmp_path: Path) -> None:
    for size in (-512, -1024, -2048, -100000):
        record = f" size={size}\n"
        record = f"{len(record) + 2}{record}".encode()
        assert len(record) in (12, 13, 14, 15, 16)
        with pytest.raises(UsageError, match="damaged or cut short"):
            ids(tmp_path / "in", MEMBERS[0] + member("p", record, tarfile.XHDTYPE) + MEMBERS[1] + END)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_long_chain_of_descriptions(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(UsageError, match="damaged or cut short"):
        ids(tmp_path / "in", b"".join([header("d", 0, kind)] * 5000) + MEMBERS[0] + END)


def test_a_tar_of_tarfile_is_read(tmp_path: Path) -> None:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(3):
            info = tarfile.TarInfo(f"{'x' * 200}ü{number}.png")
            info.size = len(png(number))
            tar.addfile(info, BytesIO(png(number)))
    assert ids(tmp_path / "in", buffer.getvalue()) == [f"t/{'x' * 200}ü{number}" for number in range(3)]
