"""Throughput of `dialog-gen download` on loopback against bare img2dataset with the same options: `make bench`.

The server has a process of its own. Figures are printed; see docs/performance.md.
"""

import asyncio
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter

from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.img2dataset.resize import RESIZE
from dialog_gen.download.manifests import DownloadOptions
from dialog_gen.download.url_lists import download_url_list

pytestmark = [pytest.mark.bench, pytest.mark.slow]

IMAGES = 4096
ROUNDS = 5
# One process that downloads beside the one that serves: a second would start at another time in each round.
OPTIONS = DownloadOptions(policy=FetchPolicy(allow_loopback=True), shard_size=1024, processes=1, threads=32)


def photos(count: int = 64) -> list[bytes]:
    """JPEGs of 400 x 300 whose noise has the spectrum of photographs, 30 to 40 kB each."""
    rng = np.random.default_rng(0)
    found: list[bytes] = []
    for _ in range(count):
        layers = (
            Image.fromarray(rng.integers(0, 256, (300 // scale, 400 // scale, 3), dtype=np.uint8))
            .resize((400, 300))
            .filter(ImageFilter.GaussianBlur(scale / 8))
            for scale in (50, 10, 2)
        )
        pixels = sum(
            np.asarray(layer, dtype=float) * weight for layer, weight in zip(layers, (0.6, 0.3, 0.1), strict=True)
        )
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def serve(port: "Connection") -> None:
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (len(p), p)
        for p in photos()
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(answers[int(request.split()[1][1:]) % len(answers)])
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@pytest.fixture
def urls(tmp_path: Path) -> Iterator[Path]:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    port = here.recv()
    listed = [f"http://127.0.0.1:{port}/{number}" for number in range(IMAGES)]
    (tmp_path / "urls").mkdir()
    pq.write_table(pa.table({"url": listed, "caption": listed}), tmp_path / "urls" / "00000.parquet")
    yield tmp_path / "urls"
    process.kill()
    process.join()


def images_per_s(images: Path) -> float:
    """While shards were under way: how long processes take to start is in neither figure."""
    stats = [json.loads(path.read_text()) for path in images.glob("*_stats.json")]
    assert sum(shard["successes"] for shard in stats) == IMAGES
    return IMAGES / (max(shard["end_time"] for shard in stats) - min(shard["start_time"] for shard in stats))


def bare(urls: Path, out: Path) -> None:
    arguments = {
        "url_list": str(urls),
        "input_format": "parquet",
        "caption_col": "caption",
        "output_folder": str(out / "images"),
        "output_format": "webdataset",
        "number_sample_per_shard": OPTIONS.shard_size,
        "processes_count": OPTIONS.processes,
        "thread_count": OPTIONS.threads,
        "extract_exif": False,
        "retries": OPTIONS.policy.retries,
        **RESIZE,
    }
    out.mkdir()
    script = "import json, sys, img2dataset; img2dataset.download(**json.loads(sys.argv[1]))"
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    subprocess.run([sys.executable, "-c", script, json.dumps(arguments)], check=True, capture_output=True, env=env)


def ours(urls: Path, out: Path) -> None:
    def prepare(into: Path) -> int:
        into.parent.mkdir(parents=True)
        into.symlink_to(urls)
        return IMAGES

    download_url_list(prepare, out, request={}, options=OPTIONS)


def test_download_against_bare_img2dataset(urls: Path, tmp_path: Path) -> None:
    ratios: list[float] = []
    for number in range(ROUNDS):
        speeds: list[float] = []
        walls: list[float] = []
        # In turn first: whatever else the machine does should not favour one of them.
        for download in (ours, bare) if number % 2 else (bare, ours):
            out = tmp_path / f"{download.__name__}-{number}"
            began = time.perf_counter()
            download(urls, out)
            walls.append(IMAGES / (time.perf_counter() - began))
            speeds.append(images_per_s(out / "images"))
        if not number % 2:
            speeds.reverse()
            walls.reverse()
        ratios.append(speeds[0] / speeds[1])
        print(
            f"\ndownload {speeds[0]:.0f} images/s, bare img2dataset {speeds[1]:.0f}: ratio {ratios[-1]:.2f}; "
            f"with the start of processes {walls[0]:.0f} and {walls[1]:.0f}: {walls[0] / walls[1]:.2f}"
        )
    print(f"median ratio {median(ratios):.2f}")
    assert median(ratios) >= 0.9
