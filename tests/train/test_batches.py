"""Batches are what a loop over the rows of the files makes, wherever vectors and token ids are read from."""

import gc
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.text.tokens import join_ids
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_train.data.checked_rows import rows_writer
from dialog_train.data.columns import crc32_after
from dialog_train.data.mapped_files import MappedFiles
from dialog_train.data.row_files import id_lists, open_rows, rows_schema
from dialog_train.data.token_batches import TokenIds, keys_of
from dialog_train.data.training_set import TrainingSet

WIDTH, VIEWS, CONTEXT = 6, 3, 12
START, END, PAD = [90], [91, 92], 0
SHARDS = {"a": (5, 2), "b": (1, 1), "c": (9, 4)}
"""Rows, and rows per record batch."""


def ids_of(rng: random.Random) -> list[int]:
    return [*START, *(rng.randrange(1, 80) for _ in range(rng.randint(0, CONTEXT - 3))), *END]


def write_set(out: Path, seed: int = 0, pad: int = PAD) -> None:
    """A training set as `build_training_set` writes it, with odd texts and ids."""
    rng = random.Random(seed)
    (out / "rows").mkdir(parents=True)
    schema = rows_schema(pa.field("vector", pa.list_(pa.float16(), VIEWS * WIDTH), nullable=False))
    number = 0
    for shard, (count, size) in SHARDS.items():
        with rows_writer(out / "rows" / f"{shard}.arrow", schema, "f") as writer:
            for first in range(0, count, size):
                some = range(first, min(first + size, count))
                pairs = [[ids_of(rng) for _ in range(rng.randint(1, 4))] for _ in some]
                names = [f"{'ü' * rng.randint(0, 3)}id-{number + row}" * rng.randint(1, 9) for row in some]
                captions = [ids_of(rng) if rng.random() < 0.7 else [*START, 5, *END] for _ in some]
                vectors = [[rng.uniform(-1, 1) for _ in range(VIEWS * WIDTH)] for _ in some]
                columns = [
                    pa.array(names),
                    pa.array([[np.float16(x) for x in row] for row in vectors], schema.field("vector").type),
                    pa.array(captions, pa.list_(pa.int32())),
                    pa.array([False for _ in some]),
                    pa.array(pairs, pa.list_(pa.list_(pa.int32()))),
                    pa.array([[False for _ in row] for row in pairs], pa.list_(pa.bool_())),
                    pa.array([False for _ in some]),
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
        number += count
    tokenizer = {"context_length": CONTEXT, "pad_id": pad, "start": START, "end": END}
    write_json(
        out / "config.json", {"kind": "training set", "width": WIDTH, "crops": VIEWS - 1, "tokenizer": tokenizer}
    )
    shards = [[name, count] for name, (count, _) in SHARDS.items()]
    summary = {"rows": number, "pairs": 0, "dropped": {}, "truncated": {}, "shards": shards}
    write_json(out / "summary.json", {"fingerprint": "f", **summary})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("batches") / "set"
    write_set(out)
    return out


def by_hand(out: Path, rows: list[int], epoch: int, context: int, concatenate: bool) -> dict[str, Any]:
    """One row after the other, as batches were made before: rotation, views and truncation in plain Python."""
    table = [row for shard in SHARDS for row in open_rows(out / "rows" / f"{shard}.arrow").to_pylist()]

    def cut(ids: list[int]) -> Any:
        whole = np.array(ids, np.int32)
        return join_ids([whole], START, END, context) if len(ids) > context else whole

    found: dict[str, list[Any]] = {"ids": [], "vectors": [], "captions": [], "dialogues": []}
    for row in (table[number] for number in rows):
        image_id, pairs = row["image_id"], row["dialogues"]
        views = np.array(row["vector"], np.float32).reshape(VIEWS, WIDTH)
        found["ids"].append(image_id)
        found["vectors"].append(views[zlib.crc32(f"{image_id}/{epoch}".encode()) % VIEWS])
        found["captions"].append(cut(row["caption"]))
        chosen = pairs[(epoch + zlib.crc32(image_id.encode())) % len(pairs)]
        everything = [np.array(pair, np.int32) for pair in pairs]
        found["dialogues"].append(join_ids(everything, START, END, context) if concatenate else cut(chosen))
    return found


@pytest.mark.parametrize("where", ["files", "device"])
@pytest.mark.parametrize("context", [CONTEXT, 5])
@pytest.mark.parametrize("concatenate", [False, True])
@pytest.mark.parametrize("full_length", [False, True])
def test_batches_are_those_of_a_loop(
    folder: Path, where: str, context: int, concatenate: bool, full_length: bool
) -> None:
    training_set = TrainingSet(folder, context)
    # The copy on a GPU, on the CPU.
    training_set.place(torch.device("cpu"), "always" if where == "device" else "auto")
    rng = random.Random(context)
    for epoch in (0, 1, 7, 123):
        rows = [rng.randrange(len(training_set)) for _ in range(11)]
        batch = training_set.batch(rows, epoch, concatenate=concatenate, full_length=full_length)
        expected = by_hand(folder, rows, epoch, context, concatenate)
        assert list(batch.image_ids) == expected["ids"]
        vectors = torch.from_numpy(np.stack(expected["vectors"]))
        assert torch.equal(batch.image_vectors, torch.nn.functional.normalize(vectors, dim=-1))
        for found, texts in ((batch.captions, expected["captions"]), (batch.dialogues, expected["dialogues"])):
            wanted = Texts.of(texts, PAD, context if full_length else 0)
            assert torch.equal(found.tokens, wanted.tokens)
            assert found.lengths.tolist() == wanted.lengths.tolist()
            assert found.may_hold_padding == wanted.may_hold_padding
        captions = [tuple(text.tolist()) for text in expected["captions"]]
        repeated = sum(captions.count(caption) > 1 for caption in captions) / len(captions)
        found = {name: float(value) for name, value in batch.statistics().items()}
        assert found == {"duplicate_captions": pytest.approx(repeated)}


@pytest.mark.parametrize("where", ["files", "device"])
def test_texts_may_hold_the_padding_id(tmp_path: Path, where: str) -> None:
    write_set(tmp_path, pad=5)
    training_set = TrainingSet(tmp_path)
    training_set.place(torch.device("cpu"), "always" if where == "device" else "auto")
    for row in range(len(training_set)):
        batch = training_set.batch([row], 0, concatenate=True)
        expected = by_hand(tmp_path, [row], 0, CONTEXT, concatenate=True)
        for found, texts in ((batch.captions, expected["captions"]), (batch.dialogues, expected["dialogues"])):
            assert found.may_hold_padding == (5 in texts[0])
    ids = TokenIds(torch.tensor([3, 5, 3], dtype=torch.int32))
    assert [ids.holds(value) for value in (3, 4, 5, 3)] == [True, False, True, True]


def test_an_image_uses_each_pair_once_in_as_many_epochs(folder: Path) -> None:
    training_set = TrainingSet(folder)
    for row, stored in enumerate(
        row for shard in SHARDS for row in open_rows(folder / "rows" / f"{shard}.arrow").to_pylist()
    ):
        pairs = stored["dialogues"]
        for first in (0, 3):
            batches = [training_set.batch([row], first + epoch, concatenate=False) for epoch in range(len(pairs))]
            assert sorted(batch.dialogues.tokens[0].tolist() for batch in batches) == sorted(pairs)


def test_no_rows(folder: Path) -> None:
    for concatenate in (False, True):
        batch = TrainingSet(folder).batch([], 0, concatenate=concatenate)
        assert (len(batch.image_ids), batch.image_vectors.shape) == (0, (0, WIDTH))
        assert batch.captions.tokens.shape == batch.dialogues.tokens.shape == (0, 0)


def test_a_damaged_row_is_found_when_the_set_is_copied(tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    file = tmp_path / "set" / "rows" / "c.arrow"
    content = bytearray(file.read_bytes())
    where = content.rindex(np.float16(open_rows(file)["vector"][7].as_py()[3]).tobytes())
    content[where] ^= 1
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"c\.arrow is missing or damaged"):
        TrainingSet(tmp_path / "set").place(torch.device("cpu"), "always")


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=9), min_size=1), end=st.text(max_size=5))
def test_checksums_go_on(texts: list[str], end: str) -> None:
    before = np.array([zlib.crc32(text.encode()) for text in texts], np.uint32)
    assert crc32_after(before, end).tolist() == [zlib.crc32((text + end).encode()) for text in texts]


def test_keys_are_equal_for_equal_texts_only() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, rng.integers(0, 5)).astype(np.int32) for _ in range(500)]
    found = [*keys_of(Texts.of(texts[:250], 0)).tolist(), *keys_of(Texts.of(texts[250:], 7, 60)).tolist()]
    assert len(set(found)) == len({tuple(text) for text in texts}) == len({*zip(map(tuple, texts), found, strict=True)})


def test_files_are_mapped_as_long_as_an_array_needs_them(tmp_path: Path) -> None:
    sizes = [0, 5000, 1, 4096, 70000]
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.bin").write_bytes(bytes([65 + number]) * size)

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    mapped = MappedFiles([tmp_path / f"{number}.bin" for number in range(len(sizes))])
    for number, (start, size) in enumerate(zip(mapped.starts, sizes, strict=True)):
        assert mapped.bytes[start : start + size].tobytes() == bytes([65 + number]) * size
    part, ids = mapped.bytes[:10].view(np.uint16), mapped.tensor
    assert mappings() == 4
    with pytest.raises(ValueError, match="read-only"):
        mapped.bytes[0] = 1
    del mapped, part
    gc.collect()
    assert (mappings(), int(ids[0])) == (4, 66)
    del ids
    gc.collect()
    assert mappings() == 0
    with pytest.raises(FileNotFoundError):
        MappedFiles([tmp_path / "none"])


def test_flat_ids_are_lists() -> None:
    assert id_lists(np.array([1, 2, 3], np.int32), np.array([2, 2, 3])).to_pylist() == [[1, 2], [], [3]]
