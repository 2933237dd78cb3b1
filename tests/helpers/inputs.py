"""Images and sources made for tests."""

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dialog_gen.sources.base import InputShard, SourceImage


def png(number: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """A small image; another number, other bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256 % 256, number // 65536)).save(buffer, "PNG")
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """`files`: path below `root` -> content."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_images(root: Path, count: int) -> Path:
    """A folder of `count` images: 00000.png holds `png(0)`, and so on."""
    return write_files(root, {f"{number:05d}.png": png(number) for number in range(count)})


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """`members`: name -> content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class _Listed:
    shard_name = "{}"

    def identity(self) -> object:
        return "listed"

    def index(self) -> Iterator[Any]:
        yield from ()

    def read(self, items: tuple[Any, ...]) -> Iterator[SourceImage]:
        yield from items


def listed_shard(
    name: str, images: Sequence[SourceImage], *, count: int | None = None, fingerprint: str = "f"
) -> InputShard:
    """A shard of these images; `count` where it promises another number than it gives."""
    return InputShard(name, len(images) if count is None else count, fingerprint, _Listed(), tuple(images))
