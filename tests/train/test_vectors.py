import gc
import io
import json
import os
import time
import tracemalloc
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.forks import run_file, run_together
from helpers.inputs import png
from helpers.rows import rows_of, sign
from helpers.training import TINY_SHARDS, scene_row, write_dialogues, write_tiny_clip
from helpers.trainings import embed_and_die
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.executors.processes import ProcessMap
from dialog_train.data import vectors as vectors_module
from dialog_train.data.vectors import EmbedSummary, VectorStore, crop_boxes, embed_dataset

SCRIPT = Path(__file__).parents[2] / "train" / "embed.py"


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> Clip:
    return load_clip(str(tiny_clip))


def embed(dialogues: Path, clip: Clip, out: Path, **options: Any) -> EmbedSummary:
    return embed_dataset(DatasetFolder.existing(str(dialogues)), clip, out, **{"batch_size": 7, **options})


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
def test_vectors_are_open_clips(
    workers: int, tiny_dialogues: Path, tiny_clip: Path, clip: Clip, tmp_path: Path
) -> None:
    heard: list[int] = []
    summary = embed(
        tiny_dialogues,
        clip,
        tmp_path / "v",
        workers=workers,
        on_progress=lambda stage, done, total, unit: heard.append(done),
    )
    store = VectorStore(tmp_path / "v")
    tables = [store.read(shard) for shard in store.shards()]
    found = [row for table in tables for row in table.to_pylist()]

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    rows = rows_of(tiny_dialogues)
    assert store.shards() == list(TINY_SHARDS)
    assert [r["image_id"] for r in found] == [r["image_id"] for r in rows]
    assert [r["image_sha256"] for r in found] == [r["image_sha256"] for r in rows]
    for row, vector in zip(rows, found, strict=True):
        image = Image.open(pa.BufferReader(row["images"][0]["bytes"])).convert("RGB")
        with torch.no_grad():
            expected = model.eval().encode_image(preprocess(image)[None])[0]
        # Half a float keeps 11 bits.
        torch.testing.assert_close(
            torch.tensor(vector["vector"]), expected / expected.norm(), atol=2**-11, rtol=0, check_dtype=False
        )
    assert {str(table["vector"].type) for table in tables} == {"fixed_size_list<element: halffloat>[32]"}
    assert (summary.shards, summary.skipped_shards, summary.vectors, heard[-1]) == (3, 0, 48, 48)
    assert not summary.lost


@given(width=st.integers(1, 400), height=st.integers(1, 400), image=st.integers(0, 99))
def test_crops_are_squares_within_the_image(width: int, height: int, image: int) -> None:
    largest = min(width, height)
    boxes = crop_boxes((width, height), str(image), 4)
    for left, upper, right, lower in boxes:
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        assert right - left == lower - upper
        # Half of the area and more, up to a pixel of rounding.
        assert (right - left + 0.5) ** 2 >= 0.5 * largest**2
    assert boxes[:2] == crop_boxes((width, height), str(image), 2)
    if largest > 50:
        assert len(set(boxes)) == 4
        assert boxes != crop_boxes((width, height), f"not {image}", 4)


def test_crops_stand_behind_the_whole_image(tiny_dialogues: Path, clip: Clip, tmp_path: Path) -> None:
    embed(tiny_dialogues, clip, tmp_path / "v", crops=2)
    embed(tiny_dialogues, clip, tmp_path / "whole")
    store, whole = VectorStore(tmp_path / "v"), VectorStore(tmp_path / "whole")
    assert (store.crops, store.width, whole.crops) == (2, 32, 0)
    rows = iter(rows_of(tiny_dialogues))
    for shard in store.shards():
        for found, alone in zip(store.read(shard).to_pylist(), whole.read(shard).to_pylist(), strict=True):
            row = next(rows)
            views = torch.tensor(found["vector"]).view(3, 32)
            torch.testing.assert_close(views[0], torch.tensor(alone["vector"]), atol=2**-11, rtol=0)
            image = Image.open(pa.BufferReader(row["images"][0]["bytes"])).convert("RGB")
            crops = [image.crop(box) for box in crop_boxes(image.size, row["image_sha256"], 2)]
            with torch.no_grad():
                pixels = torch.stack([clip.preprocess(crop) for crop in crops])
                expected = clip.model.encode_image(pixels, normalize=True)
            torch.testing.assert_close(views[1:], expected, atol=2**-11, rtol=0, check_dtype=False)
    with pytest.raises(UsageError, match=r"crops.*0.*2|crops.*2.*0"):
        embed(tiny_dialogues, clip, tmp_path / "v")


def test_config_says_what_made_them(tiny_dialogues: Path, clip: Clip, tmp_path: Path) -> None:
    embed(tiny_dialogues, clip, tmp_path / "v")
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert (config["model"], config["weights_sha256"]) == (clip.name, clip.weights_sha256)
    assert (config["width"], config["dtype"]) == (32, "float16")
    assert "Normalize(mean=" in config["transform"]
    assert " at 0x" not in config["transform"]
    dataset = DatasetFolder(str(tiny_dialogues))
    for shard in TINY_SHARDS:
        metadata = pq.read_metadata(tmp_path / "v" / "vectors" / f"{shard}.parquet").metadata
        manifest = dataset.manifest(shard)
        assert manifest is not None
        assert metadata[b"source"].decode() == manifest.files[0].sha256
        assert metadata[b"rows"].decode() == str(TINY_SHARDS[shard])


def test_goes_on_after_a_kill(
    tiny_dialogues: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(tiny_dialogues, clip, tmp_path / "whole")
    out = tmp_path / "v"
    embed(tiny_dialogues, clip, out)
    part = out / "vectors" / "b.parquet"
    # As a kill in the middle of the second shard leaves it; the third is cut off, as a file system may leave it.
    (out / ".tmp").mkdir()
    (out / ".tmp" / "b.parquet").write_bytes(part.read_bytes()[:100])
    part.unlink()
    (out / "vectors" / "c.parquet").write_bytes((out / "vectors" / "c.parquet").read_bytes()[:-9])

    seen: list[str] = []
    decode = vectors_module.decode_image
    monkeypatch.setattr(vectors_module, "decode_image", lambda data: seen.append("image") or decode(data))
    heard: list[int] = []
    summary = embed(tiny_dialogues, clip, out, on_progress=lambda _, done, *__: heard.append(done))
    assert len(seen) == TINY_SHARDS["b"] + TINY_SHARDS["c"]
    assert (summary.skipped_shards, summary.vectors, heard[-1]) == (1, 48, 48)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
def test_killed_process_goes_on(tiny_dialogues: Path, tiny_clip: Path, clip: Clip, tmp_path: Path) -> None:
    out = tmp_path / "v"
    (killed,) = run_together(embed_and_die, tiny_dialogues, tiny_clip, out, environments=[dict(os.environ)])
    assert killed.returncode == -9
    assert [path.name for path in (out / "vectors").iterdir()] == ["a.parquet"]
    assert embed(tiny_dialogues, clip, out).skipped_shards == 1
    embed(tiny_dialogues, clip, tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_of_two_that_start_together_the_second_waits(
    tiny_dialogues: Path, clip: Clip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As two trainings with one `data.work` do: what they share is made once."""
    caplog.set_level("INFO", logger="dialog_train")
    second = list[Future[EmbedSummary]]()

    def start_another(_stage: str, done: int, *_: object) -> None:
        if done and not second:
            second.append(pool.submit(embed, tiny_dialogues, clip, tmp_path / "v"))
            deadline = time.monotonic() + 60
            while "waiting for another" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        first = embed(tiny_dialogues, clip, tmp_path / "v", on_progress=start_another)
        found = second[0].result()
    assert caplog.text.count(f"{tmp_path / 'v'}: waiting for another training, which prepares it") == 1
    assert [(one.shards, one.skipped_shards) for one in (first, found)] == [(3, 0), (3, 3)]


def test_flipped_bits_are_found_and_their_shard_made_anew(tiny_dialogues: Path, clip: Clip, tmp_path: Path) -> None:
    """Any bit, also of what says how to read the file: it is read as it was written, or not at all."""
    embed(tiny_dialogues, clip, tmp_path / "v")
    store = VectorStore(tmp_path / "v")
    shard, *others = store.shards()
    file = tmp_path / "v" / "vectors" / f"{shard}.parquet"
    good, rows = file.read_bytes(), store.read(shard).to_pylist()
    footer = 8 * (len(good) - 8 - int.from_bytes(good[-8:-4], "little"))
    found = 0
    for bit in [*range(5, footer, footer // 200), *range(footer, 8 * len(good), 67)]:
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            assert store.read(shard).to_pylist() == rows, bit
        except UsageError as error:
            found += "is damaged" in str(error)
    assert found > 100
    flipped = bytearray(good)
    flipped[pq.read_metadata(io.BytesIO(good)).row_group(0).column(2).data_page_offset + 100] ^= 1
    file.write_bytes(flipped)
    summary = embed(tiny_dialogues, clip, tmp_path / "v")
    assert (summary.skipped_shards, summary.vectors) == (len(others), 48)
    assert store.read(shard).to_pylist() == rows


def test_changed_and_removed_shards(clip: Clip, tmp_path: Path) -> None:
    data, out = tmp_path / "d", tmp_path / "v"
    write_dialogues(data, {"a": [scene_row(0)], "b": [scene_row(1)], "c": [scene_row(2)]})
    embed(data, clip, out)
    write_dialogues(data, {"b": [scene_row(3), scene_row(4)]})
    (data / "shards" / "c.json").unlink()
    summary = embed(data, clip, out)
    assert (summary.shards, summary.skipped_shards, summary.vectors) == (2, 1, 3)
    store = VectorStore(out)
    assert store.shards() == ["a", "b"]
    assert store.read("b")["image_id"].to_pylist() == ["image 3", "image 4"]
    assert store.source("c") is None


def test_images_that_cannot_be_used_are_counted(clip: Clip, tmp_path: Path) -> None:
    rows = [scene_row(number) for number in range(6)]
    rows[1]["images"] = [{"bytes": rows[1]["images"][0]["bytes"][:-60], "path": None}]
    rows[2]["images"] = None
    rows[3]["images"] = [{"bytes": b"<html>", "path": None}]
    rows[4]["images"] = [{"bytes": None, "path": "4.png"}]
    write_dialogues(tmp_path / "d", {"a": rows})
    for again in (0, 1):
        summary = embed(tmp_path / "d", clip, tmp_path / "v", batch_size=2)
        assert (summary.vectors, summary.skipped_shards) == (2, again)
        assert summary.lost == {"no_image": 2, "not_an_image": 1, "truncated": 1}
    assert VectorStore(tmp_path / "v").read("a")["image_id"].to_pylist() == ["image 0", "image 5"]


def test_dialogues_about_several_images_are_left_out(clip: Clip, tmp_path: Path) -> None:
    rows = [scene_row(number) for number in range(3)]
    rows[1]["images"] = [*rows[1]["images"], *rows[0]["images"]]
    write_dialogues(tmp_path / "d", {"a": rows, "b": rows[1:2]})
    summary = embed(tmp_path / "d", clip, tmp_path / "v")
    assert (summary.vectors, summary.lost) == (2, {"several_images": 2})
    assert VectorStore(tmp_path / "v").read("a")["image_id"].to_pylist() == ["image 0", "image 2"]


def test_refuses_another_model(tiny_dialogues: Path, clip: Clip, tmp_path: Path) -> None:
    out = tmp_path / "v"
    embed(tiny_dialogues, clip, out)
    before = files(out)
    other = load_clip(str(write_tiny_clip(tmp_path / "other", seed=1)))
    config = {**clip.config, "quick_gelu": True}
    gelu = replace(clip, config=config)
    shifted = replace(clip, preprocess_config={**clip.preprocess_config, "mean": [0, 0, 0]})
    renamed = replace(clip, name="by another name")
    for model, words in (
        (
            other,
            f"model: tiny .weights {clip.weights_sha256[:12]}. there, other .weights {other.weights_sha256[:12]}. now",
        ),
        (gelu, "the weights agree, the configuration does not"),
        (shifted, "preprocess_config: "),
    ):
        with pytest.raises(UsageError, match=words):
            embed(tiny_dialogues, model, out)
        with pytest.raises(UsageError, match=words):
            VectorStore(out).check(model)
    assert files(out) == before
    VectorStore(out).check(renamed)
    assert embed(tiny_dialogues, renamed, out).skipped_shards == 3
    assert files(out) == before


def test_refuses_another_dataset_and_folders_of_something_else(
    tiny_dialogues: Path, clip: Clip, tmp_path: Path
) -> None:
    out = tmp_path / "v"
    embed(tiny_dialogues, clip, out)
    write_dialogues(tmp_path / "d", {"a": [scene_row(0)]}, made_by="another run")
    with pytest.raises(UsageError, match="another dataset"):
        embed(tmp_path / "d", clip, out)
    before = files(tmp_path / "d")
    with pytest.raises(UsageError, match="something else"):
        embed(tiny_dialogues, clip, tmp_path / "d")
    assert files(tmp_path / "d") == before


def test_useless_datasets(clip: Clip, tmp_path: Path) -> None:
    write_dialogues(tmp_path / "null", {"a": [scene_row(0, images=None), scene_row(1, images=None)]})
    write_dialogues(tmp_path / "lacks", {"a": [scene_row(0)]})
    file = tmp_path / "lacks" / "data" / "a.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["images"]), file)
    sign(tmp_path / "lacks", "a")
    write_dialogues(tmp_path / "empty", {})
    write_dialogues(tmp_path / "rejects", {"a": []})
    write_dialogues(tmp_path / "gone", {"a": [scene_row(0)]})
    (tmp_path / "gone" / "data" / "a.parquet").unlink()
    write_dialogues(tmp_path / "manifest", {"a": [scene_row(0)]})
    (tmp_path / "manifest" / "shards" / "a.json").write_text("{")
    for name, words in (
        ("null", "holds no images"),
        ("lacks", "has no column images"),
        ("empty", "holds no dialogues"),
        ("rejects", "holds no dialogues"),
        ("gone", "cannot be read"),
        ("manifest", "shards/a.json is damaged"),
    ):
        with pytest.raises(UsageError, match=words):
            embed(tmp_path / name, clip, tmp_path / f"{name}-v")
        assert not list((tmp_path / f"{name}-v").rglob("*.parquet"))


def test_useless_folders_and_weights(tiny_dialogues: Path, tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished image vectors"):
        VectorStore(tmp_path)
    with pytest.raises(UsageError, match="no folder of image vectors"):
        VectorStore(tiny_dialogues)
    broken = load_clip(str(tiny_clip))
    broken.model.visual.proj.data[0, 0] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        embed(tiny_dialogues, broken, tmp_path / "v")


def test_refusing_disk(tiny_dialogues: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(DialogGenError, match=r"No space left.*finished shards are kept"):
            embed(tiny_dialogues, clip, tmp_path / "v")
    assert embed(tiny_dialogues, clip, tmp_path / "v").vectors == 48


def test_memory_does_not_grow(clip: Clip, tmp_path: Path) -> None:
    def look(*_: object) -> None:
        tensors = [value for value in gc.get_objects() if type(value) is torch.Tensor]
        size = sum(tensor.nbytes for tensor in tensors) + tracemalloc.get_traced_memory()[0]
        held.append((len(tensors), size + pa.total_allocated_bytes()))

    peaks: list[list[int]] = []
    # Neither the shard's length nor the number of shards counts.
    for shards, rows in ((1, 64), (2, 192)):
        data = tmp_path / f"{rows}"
        images = [[{"bytes": png(number), "path": None}] for number in range(rows)]
        shard = [scene_row(number, images=image) for number, image in enumerate(images)]
        write_dialogues(data, {f"s{number}": shard for number in range(shards)})
        del images, shard
        held: list[tuple[int, int]] = []
        tracemalloc.start()
        embed(data, clip, tmp_path / f"v{rows}", batch_size=32, on_progress=look)
        tracemalloc.stop()
        peaks.append([max(values) for values in zip(*held, strict=True)])
    (tensors, size), (more_tensors, more_size) = peaks
    assert more_tensors <= tensors
    # The pixels of one batch are 393 kB, and there are ten more batches.
    assert more_size - size < 200_000


@pytest.mark.slow
def test_script(tiny_dialogues: Path, tiny_clip: Path, clip: Clip, tmp_path: Path) -> None:
    arguments = ["--dialogues", tiny_dialogues, "--model", tiny_clip, "--out", tmp_path / "v", "--batch-size", 7]
    done = run_file(SCRIPT, *arguments, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"48 image vectors in {tmp_path / 'v'}")
    embed(tiny_dialogues, clip, tmp_path / "here")
    assert files(tmp_path / "v") == files(tmp_path / "here")
    wrong = run_file(SCRIPT, "--dialogues", tmp_path / "nothing", "--model", tiny_clip, "--out", tmp_path / "x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")
    assert "does not exist" in wrong.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_processes_compute_the_same_vectors(tiny_dialogues: Path, clip: Clip, tmp_path: Path) -> None:
    embed(tiny_dialogues, clip, tmp_path / "one", crops=1)
    heard: list[int] = []
    summary = embed(
        tiny_dialogues,
        clip,
        tmp_path / "two",
        crops=1,
        workers=1,
        map_shards=ProcessMap([{"OMP_NUM_THREADS": "1"}] * 2),
        on_progress=lambda _, done, *__: heard.append(done),
    )
    assert (summary.vectors, heard[-1]) == (48, 48)
    one, two = VectorStore(tmp_path / "one"), VectorStore(tmp_path / "two")
    for shard in TINY_SHARDS:
        assert two.read(shard).drop_columns("vector").equals(one.read(shard).drop_columns("vector"))
        found, expected = (torch.tensor(store.read(shard)["vector"].to_pylist()) for store in (two, one))
        torch.testing.assert_close(found, expected, atol=2**-11, rtol=0)


def test_one_worker_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    found = vectors_module.all_gpus()
    assert found is not None
    assert found.environments == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "GPU-5"}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert vectors_module.all_gpus() is None
