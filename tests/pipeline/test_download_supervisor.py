import json
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.bad_server import image_bytes, png_of
from helpers.encoded import GOOD
from PIL import Image

from dialog_gen.core.errors import FailedCheckError
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.img2dataset import job as job_module
from dialog_gen.download.img2dataset import supervisor
from dialog_gen.download.img2dataset.job import DownloadJob, duplicates_between, write_duplicates
from dialog_gen.download.img2dataset.resize import check_header
from dialog_gen.download.img2dataset.supervisor import finished_shards, run_img2dataset
from dialog_gen.download.link_rot import measure
from dialog_gen.download.manifests import DownloadOptions
from dialog_gen.download.outcomes import FINAL, MEANING, OUTCOMES, STILL_THERE, FetchError
from dialog_gen.sources.images import is_plain

FINISH = 'touch "$images/00000.tar"; echo \'{"count": 2, "status_dict": {"success": 2}}\' > "$images/00000_stats.json"'
LIVE = 'for i in 1 2 3 4 5 6; do printf "\\000" > "$DIALOG_GEN_OUTCOME_PIPE"; sleep 0.2; done; '


@pytest.fixture
def job(tmp_path: Path) -> DownloadJob:
    """Two URLs, one shard."""
    (tmp_path / "urls").mkdir()
    (tmp_path / "images").mkdir()
    pq.write_table(pa.table({"url": ["a", "b"], "caption": ["", ""]}), tmp_path / "urls" / "00000.parquet")
    options = DownloadOptions(shard_size=2, processes=1, threads=1, stall_s=0.6)
    return DownloadJob(
        urls=str(tmp_path / "urls"), images=str(tmp_path / "images"), duplicates="duplicates.npy", options=options
    )


def starts_of(script: str, job: DownloadJob, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lets a shell script stand in for Python with img2dataset; the file returned gets a line a start."""
    folder = Path(job.images).parent
    program = folder / "program"
    program.write_text(f"#!/bin/sh\nimages={job.images}\necho start >> {folder}/starts\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(supervisor.sys, "executable", str(program))
    return folder / "starts"


@pytest.mark.parametrize(
    ("script", "starts"),
    [
        (FINISH, 1),
        (f"{LIVE}{FINISH}", 1),  # longer than it may stand still, but it moves
        (f'[ "$(wc -l < "$images/../starts")" -ge 3 ] || sleep 60; {FINISH}', 3),
    ],
    ids=["at once", "slowly", "the third time"],
)
def test_it_is_started_until_it_is_done(
    script: str, starts: int, job: DownloadJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = starts_of(script, job, monkeypatch)
    run_img2dataset(job, tmp_path / "log", "downloading")
    assert log.read_text().count("start") == starts
    run_img2dataset(job, tmp_path / "log", "downloading")
    assert log.read_text().count("start") == starts  # nothing was left to do


def test_its_progress_is_called_back(job: DownloadJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts_of(f"{LIVE}{FINISH}", job, monkeypatch)
    told: list[tuple[str, int, int | None, str, str]] = []
    run_img2dataset(job, tmp_path / "log", "downloading", lambda *all_of_it: told.append(all_of_it))
    assert told[0] == ("downloading", 0, 2, "images", "0% stored")
    assert told[-1] == ("downloading", 6, 2, "images", "100% stored")
    assert [done for _, done, *_ in told] == sorted(done for _, done, *_ in told)


@pytest.mark.parametrize(
    ("script", "message", "starts"),
    [
        ("sleep 60", r"img2dataset stood still for 0\.6 s, 4 times over: see its log .*/log", 4),
        ("echo; echo last words; echo; exit 3", r"1 of 1 shard .*: img2dataset ended with 3 \(last words\)", 1),
        ("exit 0", r"1 of 1 shard were not finished: img2dataset ended with 0 \(it said nothing\)", 1),
        ("kill -9 $$", "img2dataset ended with -9", 1),
        ('printf "\\377" > "$DIALOG_GEN_OUTCOME_PIPE"; sleep 60', "No space left on device: .*images", 1),
    ],
    ids=["stands still", "fails", "does nothing", "is killed", "disk full"],
)
def test_how_it_fails(
    script: str, message: str, starts: int, job: DownloadJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = starts_of(script, job, monkeypatch)
    with pytest.raises((FailedCheckError, OSError), match=message):
        run_img2dataset(job, tmp_path / "log", "downloading")
    assert log.read_text().count("start") == starts


def test_files_that_break_the_numbering_are_refused(job: DownloadJob, tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["c"], "caption": [""]}), tmp_path / "urls" / "00001.parquet")
    pq.write_table(pa.table({"url": ["d"], "caption": [""]}), tmp_path / "urls" / "00002.parquet")
    with pytest.raises(ValueError, match=r"a multiple of 2 rows, found \[2, 1, 1\]"):
        run_img2dataset(job, tmp_path / "log", "downloading")


def test_the_default_patience_outlasts_the_slowest_url() -> None:
    slow = FetchPolicy(deadline_s=200, retries=2, max_backoff_s=30)
    assert DownloadOptions().patience_s == 300
    assert DownloadOptions(policy=slow).patience_s == 2 * (3 * 200 + 2 * 30)
    assert DownloadOptions(policy=slow, stall_s=1).patience_s == 1


def write_shard(images: Path, name: str, outcomes: dict[str, int], count: int | None = None) -> None:
    images.mkdir(parents=True, exist_ok=True)
    (images / f"{name}.tar").touch()
    stats = {"count": sum(outcomes.values()) if count is None else count, "status_dict": outcomes}
    (images / f"{name}_stats.json").write_text(json.dumps(stats))


def test_finished_shards(tmp_path: Path) -> None:
    write_shard(tmp_path, "00000", {"success": 3, "timeout": 1})
    write_shard(tmp_path, "00001", {"success": 3}, count=4)  # a sample was lost while it was written
    write_shard(tmp_path, "00002", {"success": 4})
    (tmp_path / "00002.tar").unlink()
    write_shard(tmp_path, "00003", {})
    (tmp_path / "00003_stats.json").write_text('{"count": 4')
    (tmp_path / "00004.tar").touch()
    assert list(finished_shards(tmp_path)) == ["00000"]


def test_link_rot_counts_each_row_once_by_its_latest_outcome(tmp_path: Path) -> None:
    write_shard(tmp_path, "00000", {"success": 50, "timeout": 8, "http_404": 20, "duplicate_url": 20})
    write_shard(tmp_path, "00001", {"dns": 5, "opted_out": 3, "too_many_bytes": 2, "blocked_scheme": 2})
    # 35 failed, of them 25 again, of these 15 once more, and so on; ten retries can be sorted wrongly, by name.
    write_shard(tmp_path / "retry-1", "00000", {"success": 10, "http_404": 20, "too_many_bytes": 5})
    write_shard(tmp_path / "retry-2", "00000", {"success": 8, "opted_out": 2, "http_410": 15})
    for number in range(3, 10):
        write_shard(tmp_path / f"retry-{number}", "00000", {"http_410": 15})
    write_shard(tmp_path / "retry-10", "00000", {"http_404": 14, "success": 1})
    found = measure(tmp_path)
    assert found.outcomes == {"success": 69, "http_404": 14, "duplicate_url": 20, "opted_out": 5, "blocked_scheme": 2}
    assert (found.rows, found.urls, found.retries) == (110, 90, 10)
    assert (found.success_rate, found.alive) == (69 / 90, 74 / 90)
    assert str(found).splitlines()[0].split()[:3] == ["success", "69", "62.7%"]
    assert found.to_json()["outcomes"] == found.outcomes


def test_the_classes() -> None:
    assert set(MEANING) == set(OUTCOMES) >= FINAL | STILL_THERE
    assert len(OUTCOMES) < job_module._DISK_FULL  # each has a code of one byte


def test_the_pipe_of_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    with job_module.OutcomePipe() as supervisors:
        monkeypatch.setenv(*next(iter(supervisors.environment.items())))
        job_module._pipe.cache_clear()
        assert supervisors.read() == Counter()
        for outcome in ("success", "success", "internal_error"):
            job_module.send_outcome(outcome)
        assert supervisors.read() == {"success": 2, "internal_error": 1}
        assert not supervisors.disk_full
        job_module.send_disk_full()
        assert (supervisors.read(), supervisors.disk_full) == (Counter(), True)
        for _ in range(70_000):  # more than a pipe holds: a worker must not wait for a supervisor that is gone
            job_module.send_outcome("timeout")
    job_module.send_outcome("timeout")
    job_module._pipe.cache_clear()


def test_duplicates_are_the_rows_that_a_set_would_know(tmp_path: Path) -> None:
    urls = [*(f"http://a.test/{number % 7}" for number in range(20)), None, "", None, "", "http://a.test/3", "é", "é"]
    for number, start in enumerate(range(0, len(urls), 8)):
        pq.write_table(
            pa.table({"url": pa.array(urls[start : start + 8], pa.string())}), tmp_path / f"{number}.parquet"
        )
    write_duplicates(tmp_path, tmp_path / "duplicates.npy")
    seen: set[str] = set()
    expected = [row for row, url in enumerate(urls) if url and (url in seen or seen.add(url))]
    assert duplicates_between(tmp_path / "duplicates.npy", 0, len(urls)).tolist() == expected
    assert duplicates_between(tmp_path / "duplicates.npy", 9, 25).tolist() == [r for r in expected if 9 <= r < 25]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_images_pass(kind: str) -> None:
    check_header(image_bytes(kind))


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"", "not_an_image"),
        (b"<html>", "not_an_image"),
        (b"%PDF-1.7", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(4), "not_an_image"),
        (png_of(9_500, 9_500, b""), "too_many_pixels"),
        (png_of(30_000, 30_000, b""), "too_many_pixels"),
        (png_of(5_000, 5_000, b"", color_type=6), "too_many_pixels"),
        (png_of(5_000, 5_000, b""), None),
        (png_of(4_000, 4_000, b"", color_type=6), None),
    ],
)
def test_headers(data: bytes, outcome: Any) -> None:
    if outcome is None:
        check_header(data)
        return
    with pytest.raises(FetchError) as failure:
        check_header(data)
    assert failure.value.outcome == outcome


def test_the_same_bytes_are_stored_the_same_way() -> None:
    """What `dialog-gen rehydrate` relies on."""
    pytest.importorskip("img2dataset")
    from dialog_gen.download.img2dataset.resize import resizer

    source = image_bytes("PNG", (800, 600))
    data, width, height, *original, error = resizer()(BytesIO(source))
    assert (width, height, *original, error) == (448, 336, 800, 600, None)
    assert Image.open(BytesIO(data)).size == (448, 336)
    assert resizer()(BytesIO(source))[0] == data


@pytest.mark.parametrize("name", [name for name in GOOD if "rotated" in name])
def test_what_lies_on_its_side_is_stored_upright(name: str) -> None:
    pytest.importorskip("img2dataset")
    from dialog_gen.download.img2dataset.resize import resizer

    source, size, pixels = GOOD[name]
    data, width, height, *_ = resizer()(BytesIO(source))
    stored = Image.open(BytesIO(data))
    assert stored.size == (width, height) == size
    assert not stored.getexif()
    # JPEG blends the colours of adjacent pixels.
    for at, expected in pixels.items() if max(size) > 2 else ():
        assert stored.getpixel(at) == pytest.approx(expected, abs=4)


def gradient(kind: str, dtype: type, white: float, colour: bool) -> bytes:
    """From black at the left to white at the right, in each channel."""
    cv2 = pytest.importorskip("cv2")  # comes with img2dataset
    ramp = np.tile(np.linspace(0, white, 64).astype(dtype), (48, 1))
    return cv2.imencode(f".{kind}", np.dstack([ramp] * 3) if colour else ramp)[1].tobytes()


DEEP = {
    "16-bit grey png": ("png", np.uint16, 65535, False),
    "16-bit rgb png": ("png", np.uint16, 65535, True),
    "16-bit grey tiff": ("tiff", np.uint16, 65535, False),
    "16-bit rgb tiff": ("tiff", np.uint16, 65535, True),
    "signed 16-bit tiff": ("tiff", np.int16, 32767, False),
    "float tiff": ("tiff", np.float32, 1, False),
    "16-bit pgm": ("pgm", np.uint16, 65535, False),
    "16-bit ppm": ("ppm", np.uint16, 65535, True),
    "float pfm": ("pfm", np.float32, 1, False),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_scaled_not_cut_off(name: str) -> None:
    pytest.importorskip("img2dataset")
    from dialog_gen.download.img2dataset.resize import resizer

    source = gradient(*DEEP[name])
    check_header(source)
    data, width, height, *_, error = resizer()(BytesIO(source))
    assert (width, height, error) == (64, 48, None)
    row = np.asarray(Image.open(BytesIO(data)).convert("L"))[24]
    assert row == pytest.approx(np.linspace(0, 255, 64), abs=4)
    assert resizer()(BytesIO(source))[0] == data


@pytest.mark.parametrize("name", ["plain cmyk jpeg", "adobe cmyk jpeg"])
def test_cmyk(name: str) -> None:
    pytest.importorskip("img2dataset")
    from dialog_gen.download.img2dataset.resize import resizer

    source, _, pixels = GOOD[name]
    stored = Image.open(BytesIO(resizer()(BytesIO(source))[0]))
    assert all(stored.getpixel(at) == pytest.approx(expected, abs=4) for at, expected in pixels.items())


def test_a_deep_image_that_is_damaged_is_not_stored() -> None:
    pytest.importorskip("img2dataset")
    from dialog_gen.download.img2dataset.resize import resizer

    source = gradient("png", np.uint16, 65535, colour=True)
    data, *_, error = resizer()(BytesIO(source[: len(source) // 2]))
    assert data is None
    assert error


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_usual_images_are_read_by_img2dataset_alone(kind: str) -> None:
    """As ever: what was downloaded once is found again, byte by byte."""
    assert is_plain(image_bytes(kind))
