"""What folders hold: name of a thing -> hash of it. Read without the product's own readers."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open

Contents = list[tuple[str, str]]
# Columns in which two runs with the same input may differ.
_VOLATILE = ("created_at", "engine_version")


def rows(dataset: Path) -> Contents:
    """The rows that the manifests of a dataset folder name, by their ids; rejects too."""
    found: Contents = []
    for sidecar in sorted((dataset / "shards").glob("*.json")):
        manifest = json.loads(sidecar.read_bytes())
        for entry in manifest["files"]:
            table = pq.ParquetFile(dataset / entry["path"]).read(use_threads=False)
            for row in table.to_pylist():
                kept = {name: value for name, value in row.items() if name not in _VOLATILE}
                found.append((f"{entry['path'].partition('/')[0]}/{row['image_id']}", _hash(kept)))
    return found


def vectors(folder: Path) -> Contents:
    """The vectors that `dialog-train embed` computed, by the ids of their images."""
    files = sorted((folder / "vectors").glob("*.parquet"))
    tables = [pq.ParquetFile(file).read(use_threads=False).to_pylist() for file in files]
    return [(row["image_id"], _hash([float(x) for x in row["vector"]])) for table in tables for row in table]


def tensors(training: Path) -> Contents:
    """The weights of a finished training, by their names."""
    if not (training / "train.json").exists():
        return []
    with safe_open(next((training / "model").glob("*.safetensors")), "pt") as file:
        return [(name, _hash(file.get_tensor(name).numpy().tobytes())) for name in file.keys()]  # noqa: SIM118


def files(folder: Path) -> Contents:
    """All visible files, and the members of tars in their place. The record of a download counts as its keys."""
    return list(_files(folder))


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if not file.is_file() or name.startswith("."):
            continue
        if file.suffix == ".tar":
            with tarfile.open(file) as tar:
                for member in tar:
                    opened = tar.extractfile(member)
                    yield f"{name}/{member.name}", _hash(opened.read() if opened else b"")
        else:
            yield name, _hash(file.read_bytes())


def _hash(value: Any) -> str:
    data = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.blake2b(data, digest_size=12).hexdigest()
