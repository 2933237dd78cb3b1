import io
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.inputs import png, write_tar
from helpers.pixels import TinyPixels, make_clip_recipe
from helpers.rows import gates_of, rows_of
from helpers.training import TINY_CLIP, scene_row, write_dialogues
from PIL import Image
from torch.nn.functional import interpolate

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.data.pixel_building import build_pixel_set
from dialog_train.data.pixel_set import Normalization, PixelBatches, PixelSet, random_crops
from dialog_train.data.pixel_sources import CaptionedImages, DialogueImages, PixelShard, PixelSource, StoredImage
from dialog_train.system import EVERYTHING, Share


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> Clip:
    return load_clip(str(tiny_clip))


@pytest.fixture(scope="module")
def dialogues(tiny_dialogues: Path) -> DialogueImages:
    return DialogueImages(DatasetFolder(str(tiny_dialogues)))


@pytest.fixture(scope="module")
def tiny_set(dialogues: DialogueImages, clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> PixelSet:
    return build_pixel_set(dialogues, clip, tmp_path_factory.mktemp("pixels") / "p")


def noise(number: int, size: tuple[int, int], kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_source(root: Path, images: Mapping[str, tuple[bytes, str | None]], name: str = "00000") -> CaptionedImages:
    """A tar of images with captions."""
    members: dict[str, bytes] = {}
    for key, (data, caption) in images.items():
        members[f"{key}.png"] = data
        if caption is not None:
            members[f"{key}.txt"] = caption.encode()
    write_tar(root / f"{name}.tar", members)
    return CaptionedImages(str(root))


def padded(clip: Clip, texts: list[str]) -> torch.Tensor:
    tokens = clip.tokenizer(texts)
    return tokens[:, : int((tokens != 0).sum(1).max())]


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_pixels_are_what_the_model_sees(clip: Clip, tmp_path: Path) -> None:
    sizes = [(32, 32), (50, 40), (31, 90), (8, 8)]
    stored = {f"{n}": (noise(n, size), f"caption {n}") for n, size in enumerate(sizes)}
    pixel_set = build_pixel_set(write_source(tmp_path / "s", stored), clip, tmp_path / "p")
    batch = pixel_set.batch([3, 0, 1, 2], 0)
    assert batch.image_ids == [f"00000/{n}" for n in (3, 0, 1, 2)]
    assert (batch.pixels.dtype, batch.pixels.shape) == (torch.uint8, (4, 3, 32, 32))
    images = [Image.open(io.BytesIO(stored[str(n)][0])) for n in (3, 0, 1, 2)]
    expected = torch.stack([clip.preprocess(image) for image in images])
    torch.testing.assert_close(Normalization(clip.preprocess_config)(batch.pixels), expected, rtol=0, atol=1e-6)
    assert torch.equal(batch.captions.tokens, padded(clip, [f"caption {n}" for n in (3, 0, 1, 2)]))
    assert batch.dialogues is None
    assert batch.statistics() == {"duplicate_captions": 0}


def test_rows_of_dialogues(tiny_set: PixelSet, tiny_dialogues: Path, clip: Clip) -> None:
    rows = rows_of(tiny_dialogues)
    assert len(tiny_set) == len(rows) == 48
    chosen = [47, 0, 25]
    batch = tiny_set.batch(chosen, 2, dialogues="concatenate")
    expected = [rows[number] for number in chosen]
    assert batch.image_ids == [row["image_id"] for row in expected]
    assert torch.equal(batch.captions.tokens, padded(clip, [row["caption"] for row in expected]))
    texts = [[f"{p['user']} {p['assistant']}" for p in row["texts"]] for row in expected]
    assert batch.dialogues is not None
    assert torch.equal(batch.dialogues.tokens, padded(clip, [" ".join(pairs) for pairs in texts]))
    seen = [Counter[tuple[int, ...]]() for _ in chosen]
    for epoch in range(3):
        tokens = tiny_set.batch(chosen, epoch, dialogues="rotate").dialogues.tokens
        assert tokens is not None
        for counter, ids in zip(seen, tokens.tolist(), strict=True):
            counter[tuple(filter(None, ids))] += 1
    for counter, pairs in zip(seen, texts, strict=True):
        assert set(counter) == {tuple(filter(None, ids)) for ids in padded(clip, pairs).tolist()}
    assert tiny_set.batch([0], 0, full_length=True).captions.tokens.shape == (
        1,
        TINY_CLIP["text_cfg"]["context_length"],
    )
    with pytest.raises(IndexError):
        tiny_set.batch([48], 0)


def test_what_cannot_be_used_is_counted(clip: Clip, tmp_path: Path) -> None:
    good = png(1)
    stored = {
        "a": (good, "first"),
        "b": (b"<html>", "no image"),
        "c": (png(2), None),
        "d": (png(3), "  "),
        "e": (noise(1, (20, 20))[:200], "cut short"),
        "f": (good, "a copy"),
        "g": (png(4), "last"),
    }
    pixel_set = build_pixel_set(write_source(tmp_path / "s", stored), clip, tmp_path / "p")
    assert pixel_set.summary.dropped == {"not_an_image": 1, "truncated": 1, "without_caption": 2}
    assert pixel_set.batch(range(len(pixel_set)), 0).image_ids == ["00000/a", "00000/g"]
    with pytest.raises(UsageError, match=r"no image to train on: {'without_caption': 1}"):
        build_pixel_set(write_source(tmp_path / "none", {"a": (good, None)}), clip, tmp_path / "q")


def test_copies_in_other_shards_count_once(clip: Clip, tmp_path: Path) -> None:
    write_source(tmp_path / "s", {"a": (png(1), "x"), "b": (png(2), "y")}, "00000")
    source = write_source(tmp_path / "s", {"a": (png(2), "z"), "b": (png(3), "w")}, "00001")
    pixel_set = build_pixel_set(source, clip, tmp_path / "p")
    assert pixel_set.batch(range(3), 0).image_ids == ["00000/a", "00000/b", "00001/b"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_call_changes_nothing(
    dialogues: DialogueImages, clip: Clip, tmp_path: Path, tiny_set: PixelSet, workers: int
) -> None:
    build_pixel_set(dialogues, clip, tmp_path / "p", workers=workers)
    before = files(tmp_path / "p")
    assert {name for name in before if name.endswith(".arrow")} == {f"rows/{shard}.arrow" for shard in "abc"}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "p" / "rows").iterdir()}
    again = build_pixel_set(dialogues, clip, tmp_path / "p", workers=workers)
    assert files(tmp_path / "p") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert torch.equal(again.batch(range(48), 0).pixels, tiny_set.batch(range(48), 0).pixels)


class Interrupted(Exception):  # noqa: N818
    pass


class Broken:
    """A source that ends in the middle of its third shard."""

    def __init__(self, source: PixelSource) -> None:
        self.config, self._source = source.config, source

    def shards(self) -> Any:
        *whole, last = self._source.shards()
        yield from whole

        def read() -> Any:
            yield next(iter(last.read()))
            raise Interrupted

        yield PixelShard(last.name, last.fingerprint, read)


def test_goes_on_where_it_was_stopped(dialogues: DialogueImages, clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        build_pixel_set(Broken(dialogues), clip, tmp_path / "p")
    kept = tmp_path / "p" / "rows" / "a.arrow"
    assert [path.name for path in kept.parent.glob("*.arrow")] == [kept.name]
    with pytest.raises(UsageError, match="holds no finished pixel set"):
        PixelSet(tmp_path / "p")
    time = kept.stat().st_mtime_ns
    build_pixel_set(dialogues, clip, tmp_path / "p")
    build_pixel_set(dialogues, clip, tmp_path / "q")
    assert files(tmp_path / "p") == files(tmp_path / "q")
    assert kept.stat().st_mtime_ns == time


def test_follows_its_source(clip: Clip, tmp_path: Path) -> None:
    for name, number in (("00000", 1), ("00001", 2)):
        source = write_source(tmp_path / "s", {"a": (png(number), "x")}, name)
    build_pixel_set(source, clip, tmp_path / "p")
    untouched = (tmp_path / "p" / "rows" / "00000-000.arrow").stat().st_mtime_ns
    write_source(tmp_path / "s", {"a": (png(9), "another caption")}, "00001")
    found = build_pixel_set(source, clip, tmp_path / "p").batch([1], 0)
    assert torch.equal(found.captions.tokens, padded(clip, ["another caption"]))
    assert (tmp_path / "p" / "rows" / "00000-000.arrow").stat().st_mtime_ns == untouched
    (tmp_path / "s" / "00001.tar").unlink()
    assert len(build_pixel_set(source, clip, tmp_path / "p")) == 1
    assert sorted(path.stem for path in (tmp_path / "p" / "rows").iterdir()) == ["00000-000", "00000-000"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_file_is_made_again(
    dialogues: DialogueImages, clip: Clip, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    build_pixel_set(dialogues, clip, tmp_path / "p")
    before = files(tmp_path / "p")
    damage(tmp_path / "p" / "rows" / "b.arrow")
    with pytest.raises(UsageError, match=r"b.arrow is missing or damaged"):
        PixelSet(tmp_path / "p")
    build_pixel_set(dialogues, clip, tmp_path / "p")
    assert files(tmp_path / "p") == before


@pytest.mark.parametrize("other", ["source", "format", "size"])
def test_refuses_a_folder_of_something_else(
    dialogues: DialogueImages, clip: Clip, tmp_path: Path, tiny_clip: Path, other: str
) -> None:
    source = write_source(tmp_path / "s", {"a": (png(1), "x")})
    build_pixel_set(dialogues, clip, tmp_path / "p")
    if other == "source":
        with pytest.raises(UsageError, match="images: None there"):
            build_pixel_set(source, clip, tmp_path / "p")
    elif other == "format":
        changed = DialogueImages(dialogues.dataset, dialogue_format="answer")
        with pytest.raises(UsageError, match="dialogue_format: 'question_answer' there, 'answer' now"):
            build_pixel_set(changed, clip, tmp_path / "p")
    else:
        larger = load_clip(str(tiny_clip))
        larger.preprocess_config["size"] = 48
        with pytest.raises(UsageError, match=r"shape: \[3, 32, 32\] there, \[3, 48, 48\] now"):
            build_pixel_set(dialogues, larger, tmp_path / "p")


def test_marked_pairs_are_left_out_where_asked_for(clip: Clip, tmp_path: Path) -> None:
    rows = [scene_row(number) for number in range(3)]
    for row, marks in zip(rows, ([[], ["leak"], []], [["echo"]] * 3, [[], [], []]), strict=True):
        row["gates"] = gates_of(marks)
    write_dialogues(tmp_path / "d", {"s": rows})
    dataset = DatasetFolder(str(tmp_path / "d"))
    kept = build_pixel_set(DialogueImages(dataset, kept_only=True), clip, tmp_path / "p")
    assert (kept.summary.rows, kept.summary.pairs, kept.summary.dropped) == (2, 5, {"without_dialogue": 1})
    rows[2]["gates"] = None
    write_dialogues(tmp_path / "e", {"s": rows})
    with pytest.raises(UsageError, match="no gates were applied to shard s"):
        build_pixel_set(DialogueImages(DatasetFolder(str(tmp_path / "e")), kept_only=True), clip, tmp_path / "q")


def test_shared_images_without_bytes(clip: Clip, tmp_path: Path) -> None:
    write_dialogues(tmp_path / "d", {"s": [scene_row(0, images=None), scene_row(1)]})
    pixel_set = build_pixel_set(DialogueImages(DatasetFolder(str(tmp_path / "d"))), clip, tmp_path / "p")
    assert (len(pixel_set), pixel_set.summary.dropped) == (1, {"no_image": 1})


def test_dialogues_about_several_images(clip: Clip, tmp_path: Path) -> None:
    images = [image for number in range(2) for image in scene_row(number)["images"]]
    write_dialogues(tmp_path / "d", {"s": [scene_row(0, images=images), scene_row(1)]})
    pixel_set = build_pixel_set(DialogueImages(DatasetFolder(str(tmp_path / "d"))), clip, tmp_path / "p")
    assert (len(pixel_set), pixel_set.summary.dropped) == (1, {"several_images": 1})


class Endless:
    """More images than there is memory for, were they held."""

    config: dict[str, Any] = {"images": "endless"}  # noqa: RUF012

    def shards(self) -> Any:
        yield PixelShard("s", "f", self._read)

    def _read(self) -> Any:
        for number in range(400):
            self.read = number
            yield StoredImage(f"{number}", png(number), "x", None)


def test_reads_no_further_than_it_writes(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dialog_train.data import pixel_building as building

    source, seen = Endless(), list[int]()
    text_columns = building.text_columns

    def note(*arguments: Any) -> Any:
        seen.append(source.read)
        return text_columns(*arguments)

    monkeypatch.setattr(building, "text_columns", note)
    assert len(build_pixel_set(source, clip, tmp_path / "p")) == 400
    assert seen == [127, 255, 383, 399]


@pytest.mark.parametrize("crop_area", [1.0, 0.5])
def test_processes_share_a_batch(tmp_path: Path, crop_area: float) -> None:
    recipe = make_clip_recipe(tmp_path, crop_area=crop_area)
    data = PixelBatches(recipe, TinyPixels(), full_length=False)
    assert data.steps_per_epoch == 6
    whole, again = data.batch(8, EVERYTHING), data.batch(8, EVERYTHING)
    parts = [data.batch(8, Share(rank, 4)) for rank in range(4)]
    assert torch.equal(whole.pixels, again.pixels)
    assert torch.equal(whole.pixels, torch.cat([part.pixels for part in parts]))
    assert whole.image_ids == [image_id for part in parts for image_id in part.image_ids]
    rows = [int(image_id.removeprefix("image-")) for image_id in whole.image_ids]
    assert torch.equal(whole.pixels, TinyPixels().pixels[rows]) == (crop_area == 1)
    with pytest.raises(UsageError, match="divide by 3"):
        data.batch(0, Share(0, 3))


def test_dialogues_that_there_are_not(tmp_path: Path) -> None:
    rows = TinyPixels()
    rows.has_dialogues = False
    recipe = make_clip_recipe(tmp_path)
    with pytest.raises(UsageError, match=r"give data.dialogues"):
        PixelBatches(recipe, rows, dialogues="rotate", full_length=False)
    assert PixelBatches(recipe, rows, full_length=False).batch(0, EVERYTHING).dialogues is None


def test_crops_are_where_the_draws_say() -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(80, 176, (4, 3, 20, 30), np.uint8))
    draws = np.array([[1, 0.3, 0.3], [0, 0, 0], [0, 1, 1], [0.4, 0, 1]])
    crops = random_crops(pixels, draws, 0.25)
    assert torch.equal(crops[0], pixels[0])
    # A quarter of the area at the upper left and the lower right, and 55 % of it at the lower left.
    sides = [1, 0.5, 0.5, math.sqrt(0.55)]
    places = [None, (slice(0, 10), slice(0, 15)), (slice(10, 20), slice(15, 30)), (slice(5, 20), slice(0, 22))]
    for number, (side, place) in enumerate(zip(sides, places, strict=True)):
        if place is None:
            continue
        crop = pixels[number][:, place[0], place[1]]
        assert crop.shape[1:] == (round(20 * side), round(30 * side))
        expected = interpolate(crop[None].float(), (20, 30), mode="bicubic", antialias=True)[0]
        torch.testing.assert_close(crops[number].float(), expected.clamp(0, 255).round(), rtol=0, atol=1)


def test_a_damaged_name_of_the_dialogues_does_not_leave_them_out(
    dialogues: DialogueImages, clip: Clip, tmp_path: Path
) -> None:
    """The location of the dialogues is not compared, as a dataset may move."""
    build_pixel_set(dialogues, clip, tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"dialogues":', '"dialoguet":'))
    assert build_pixel_set(dialogues, clip, tmp_path).has_dialogues
