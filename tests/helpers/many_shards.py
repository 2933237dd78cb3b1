"""Datasets of very many tiny shards."""

import json
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.blocks import digests
from dialog_gen.core.hashing import sha256_json
from dialog_gen.dataset.folder import FileEntry, ShardManifest
from dialog_gen.dataset.record import DIALOGUES
from helpers.rows import make_row

_ID = b"image-0000000"


def write_many_shards(out: Path, shards: int, *, rows_every: int = 10) -> None:
    """Every `rows_every`-th shard has one accepted row, the others have none: a source of which most was refused.

    Writing Parquet takes too long: the files are copies of one, with another id of the same length in its bytes.
    """
    config = {"schema_version": 3, "model": "m"}
    stream = BytesIO()
    table = pa.Table.from_pylist([make_row(0, image_id=_ID.decode())], DIALOGUES)
    pq.write_table(table, stream, compression="none", use_dictionary=False)
    template = stream.getvalue()
    for part in ("data", "shards"):
        (out / part).mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config))
    for number in range(shards):
        files, name = list[FileEntry](), f"s-{number:07d}"
        if number % rows_every == 0:
            data = template.replace(_ID, b"image-%07d" % number)
            found = digests(BytesIO(data))
            files = [
                FileEntry(
                    path=f"data/{name}.parquet",
                    rows=1,
                    bytes=found.bytes,
                    sha256=found.sha256,
                    block_crc32=found.block_crc32,
                )
            ]
            (out / "data" / f"{name}.parquet").write_bytes(data)
        manifest = ShardManifest(
            shard=name,
            config_sha256=sha256_json(config),
            input_fingerprint="f",
            images=len(files),
            accepted=len(files),
            rejected=0,
            unreadable=0,
            reasons={"rejected": {}, "unreadable": {}},
            output_tokens=9,
            files=files,
        )
        (out / "shards" / f"{name}.json").write_text(json.dumps(manifest.model_dump(), indent=2))
