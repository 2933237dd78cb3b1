import io
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers.encoded import BAD, GOOD, encode, photo, png
from helpers.memory import MEASURABLE, peak_rss, reset_peak_rss
from PIL import Image, ImageFile, ImageOps

from dialog_gen.sources.images import FORMATS, IMAGE_EXTENSIONS, UNREADABLE_REASONS, UnreadableImage, decode_image


@pytest.mark.parametrize("name", GOOD)
def test_reads_right(name: str) -> None:
    data, size, pixels = GOOD[name]
    image = decode_image(data)
    assert (image.mode, image.size, type(image)) == ("RGB", size, Image.Image)
    lossy = any(kind in name for kind in ("jpeg", "avif", "heic")) or name == "rotated webp"
    for at, expected in pixels.items():
        assert image.getpixel(at) == pytest.approx(expected, abs=3 if lossy else 0)


@pytest.mark.parametrize("name", BAD)
def test_says_why_not(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(UnreadableImage) as caught:
        decode_image(data)
    assert caught.value.reason in UNREADABLE_REASONS
    assert reason is None or caught.value.reason == reason, caught.value
    assert caught.value.detail


def test_endings_are_those_of_the_formats() -> None:
    """As Pillow knows them; what many phones write is a JPEG with another behind it."""
    known = {ending[1:] for ending, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")}
    assert set(IMAGE_EXTENSIONS) == known
    assert decode_image(encode(photo((24, 16)), "MPO", save_all=True, append_images=[photo((24, 16))])).size == (24, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_agree_with_pillow_and_are_applied_once(orientation: int) -> None:
    image = photo((24, 16))
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(image, "PNG", exif=exif)
    decoded = decode_image(data)
    assert decoded.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()
    assert ImageOps.exif_transpose(decoded).tobytes() == decoded.tobytes()


def test_a_half_image_is_refused_though_pillow_was_told_to_pass_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(BAD["truncated jpeg"][0])


def test_max_pixels_is_inclusive() -> None:
    data = png(3, 2, (b"\0" + bytes(9)) * 2)
    assert decode_image(data, max_pixels=6).size == (3, 2)
    with pytest.raises(UnreadableImage, match="too_large"):
        decode_image(data, max_pixels=5)


def test_every_cut_and_every_damage_is_an_image_or_unreadable() -> None:
    """Whatever Pillow's decoders raise on corrupt data, one exception comes out."""
    random = np.random.default_rng(2)
    whole = [encode(photo((40, 30)), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    outcomes = set()
    for data in whole:
        cuts = [data[: int(at)] for at in random.integers(0, len(data), 40)]
        for _ in range(40):
            damaged = bytearray(data)
            for at in random.integers(0, min(len(data), 400), 4):
                damaged[at] = random.integers(0, 256)
            cuts.append(bytes(damaged))
        for sample in cuts:
            try:
                outcomes.add(decode_image(sample, max_pixels=1_000_000).mode)
            except UnreadableImage as error:
                outcomes.add(error.reason)
    assert outcomes >= {"RGB", "truncated", "not_an_image"}


@pytest.mark.parametrize("action", ["error", "always"])
def test_no_warning_escapes(action: str) -> None:
    over_the_warning = BAD["bmp over the warning"][0]
    description = struct.pack("<HHI", 270, 2, 41)  # tag, type, length
    bad_tag = encode(photo((8, 8)), "TIFF", description="d" * 40)
    assert description in bad_tag
    bad_tag = bad_tag.replace(description, struct.pack("<HHI", 270, 2, 10**7))
    with pytest.warns(UserWarning, match="Skipping tag"):
        Image.open(io.BytesIO(bad_tag))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        with pytest.raises(UnreadableImage, match="too_large"):
            decode_image(over_the_warning)
        assert decode_image(bad_tag).size == (8, 8)
    assert not caught


def test_many_threads_agree() -> None:
    work = [*GOOD.values(), *((data, reason, None) for data, reason in BAD.values())] * 4
    start = threading.Barrier(8)

    def outcome(item: tuple[bytes, *tuple[Any, ...]]) -> bytes | str:
        try:
            return decode_image(item[0]).tobytes()
        except UnreadableImage as error:
            return error.reason

    def first(index: int) -> list[bytes | str]:
        start.wait()
        return [outcome(item) for item in work[index::8]]

    expected = [outcome(item) for item in work]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(first, range(8)))
    assert [got[i % 8][i // 8] for i in range(len(work))] == expected


@pytest.mark.skipif(not MEASURABLE, reason="reads the peak from Linux")
def test_a_bomb_costs_no_memory() -> None:
    reset_peak_rss()
    before = peak_rss()
    for name in ("png bomb", "ppm bomb", "gif bomb"):
        with pytest.raises(UnreadableImage):
            decode_image(BAD[name][0])
    assert peak_rss() - before < 50e6  # decoded it would be 4.8 GB
