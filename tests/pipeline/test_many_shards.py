"""Memory does not grow with the manifests of all shards: those of 100 TB contain gigabytes of checksums."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.many_shards import write_many_shards
from helpers.rows import rows_of

from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.intact import intact_manifests
from dialog_gen.dataset.verify import verify
from dialog_gen.inspect.sampling import sample_rows
from dialog_gen.publish import compact as compact_module
from dialog_gen.publish.compact import compact

SHARDS, BYTES_PER_MANIFEST, LIMIT_BYTES = 200, 200_000, 10_000_000


@pytest.fixture
def folder(tmp_path: Path) -> DatasetFolder:
    """Each shard has a row. The manifests are as large as those of shards of 2 GB."""
    out = tmp_path / "out"
    write_many_shards(out, SHARDS, rows_every=1)
    for path in (out / "shards").iterdir():
        manifest = unsealed(path.read_bytes())
        # A reader of some columns needs the checksums of blocks only.
        manifest["files"][0]["sha256"] = manifest["shard"] * (BYTES_PER_MANIFEST // len(manifest["shard"]))
        path.write_text(json.dumps(manifest))
    return DatasetFolder(str(out))


def read_twice(folder: DatasetFolder) -> None:
    manifests = intact_manifests(folder)
    for _ in range(2):
        assert [manifest.shard for manifest in manifests] == folder.shards()


def sample(folder: DatasetFolder) -> None:
    assert len(list(sample_rows(folder, ["image_id"], 10))) == 10


def compact_by_ten(folder: DatasetFolder) -> None:
    out = Path(folder.location).parent / "compact"
    summary = compact(folder, out)
    assert (summary.shards, summary.source_shards, summary.images) == (SHARDS / 10, SHARDS, SHARDS)
    assert compact(folder, out).shards_already_done == SHARDS / 10
    assert rows_of(out) == rows_of(Path(folder.location))
    assert verify(out).problems == []


@pytest.mark.parametrize("work", [read_twice, sample, compact_by_ten])
def test_memory(folder: DatasetFolder, work: Callable[[DatasetFolder], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact_module, "_SHARDS_IN_ONE", 10, raising=False)
    tracemalloc.start()
    work(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < LIMIT_BYTES < SHARDS * BYTES_PER_MANIFEST / 2
