import hashlib
import io
import random
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dialog_gen.core import blocks
from dialog_gen.core.blocks import BLOCK_BYTES, CheckedFile, DamagedFileError, Digests, digests


def bytes_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 999, 1000])
def test_reads_what_is_there(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    data = bytes_of(size)
    found = digests(io.BytesIO(data))
    assert (found.bytes, found.sha256) == (size, hashlib.sha256(data).hexdigest())
    plain, checked = io.BytesIO(data), CheckedFile(io.BytesIO(data), size, found.block_crc32)
    assert checked.read() == data
    draw = random.Random(0)
    for _ in range(300):
        place, length = draw.randrange(size + 50), draw.choice([-1, 0, 1, 7, 100, 250])
        assert checked.seek(place) == plain.seek(place)
        assert checked.read(length) == plain.read(length)
        assert checked.tell() == min(plain.tell(), max(size, place))
    buffer = bytearray(30)
    checked.seek(size // 2)
    assert bytes(buffer[: checked.readinto(buffer)]) == data[size // 2 :][:30]


def test_the_checksums_are_crc32_of_64_kib() -> None:
    data = bytes_of(3 * BLOCK_BYTES + 5)
    expected = b"".join(
        zlib.crc32(data[start : start + 65536]).to_bytes(4, "little") for start in range(0, len(data), 65536)
    )
    import base64

    assert base64.b64decode(digests(io.BytesIO(data)).block_crc32) == expected


def test_only_what_is_read_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    data = bytes_of(950)
    found = digests(io.BytesIO(data))
    for bit in range(0, 8 * len(data), 7):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        block = bit // 800
        checked = CheckedFile(io.BytesIO(damaged), 950, found.block_crc32)
        assert checked.read(100 * block) == data[: 100 * block]
        with pytest.raises(DamagedFileError, match="another checksum"):
            checked.read(1)
        if block < 9:
            checked.seek(100 * block + 100)
            assert checked.read() == data[100 * block + 100 :]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found, data: (found, data[:-1]), "it has 949 bytes, 950 are promised"),
        (lambda found, data: (found, data + b"x"), "it has 951 bytes, 950 are promised"),
        (lambda found, data: (found[:-4], data), "another number of checksums"),
        (lambda found, data: ("?" + found, data), "not valid base64"),
    ],
)
def test_what_does_not_fit(change: object, said: str) -> None:
    data = bytes_of(950)
    crcs, damaged = change(digests(io.BytesIO(data)).block_crc32, data)  # type: ignore[operator]
    with pytest.raises(DamagedFileError, match=said):
        CheckedFile(io.BytesIO(damaged), 950, crcs)


def test_arrow_passes_the_error_on(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [bytes_of(1 << 18)], "b": ["text"]}), file, compression="none")
    with file.open("rb") as opened:
        found: Digests = digests(opened)
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    checked = CheckedFile(io.BytesIO(data), found.bytes, found.block_crc32)
    parquet = pq.ParquetFile(checked, buffer_size=1 << 20, pre_buffer=False)
    assert parquet.read(["b"]).to_pylist() == [{"b": "text"}]
    with pytest.raises(OSError, match=r"bytes 0 to .* have another checksum than promised"):
        parquet.read(["a"])
