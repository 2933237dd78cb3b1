import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from dialog_gen.core.errors import FailedCheckError, MissingExtraError, UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.download.folder import locked
from dialog_gen.download.url_lists import ImagesSummary
from dialog_gen.shapes import fetch
from dialog_gen.shapes.fetch import download_shapes
from dialog_gen.shapes.render import render, render_png
from dialog_gen.shapes.scenes import Scene, draw_scene
from dialog_gen.shapes.worlds import FIRST

# Three shards, the last one not full.
ARGUMENTS: dict[str, Any] = {"split": "test", "seed": 3, "limit": 40, "shard_size": 16}
BROKEN = 20  # in the second shard


def read_tree(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def files_of_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("download") / "shapes"
    with pytest.MonkeyPatch.context() as patch:
        # Nothing listens there: what went through this proxy would fail.
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        summary = download_shapes(out, **ARGUMENTS)
    assert summary == ImagesSummary(out=out, images=40, shards=3, already_complete=False)
    return out


@pytest.mark.slow
def test_files(downloaded: Path) -> None:
    assert [name for name in read_tree(downloaded) if not name.startswith("choices/")] == [
        *(f"classification/{name}" for name in ("classes.txt", "labels_shapes_test.json", "templates.txt")),
        "download.json",
        *(f"images/{n:05d}{end}" for n in range(3) for end in (".tar", "_stats.json")),
        "retrieval/captions_shapes_test.json",
        "retrieval/descriptions_shapes_test.jsonlines",
        "truth.jsonl",
        *(f"vqa/{p}_shapes_test_questions.json" for p in ("MultipleChoice", "OpenEnded")),
        "vqa/shapes_test_annotations.json",
    ]
    assert not [p for p in downloaded.iterdir() if p.name.startswith(".")]
    record = unsealed((downloaded / "download.json").read_bytes())
    sizes = {path.name: path.stat().st_size for path in (downloaded / "images").glob("*.tar")}
    assert record == {"manifest": "shapes", **ARGUMENTS, "images": 40, "shards": 3, "tar_bytes": sizes}


@pytest.mark.slow
def test_images_are_the_rendered_scenes_under_the_ids_of_the_truth(downloaded: Path) -> None:
    truth = [json.loads(line) for line in (downloaded / "truth.jsonl").read_text().splitlines()]
    found: dict[str, tuple[bytes, dict[str, Any], str]] = {}
    for path in sorted((downloaded / "images").glob("*.tar")):
        content = files_of_tar(path)
        assert list(content) == sorted(content)
        for key in sorted({name.split(".")[0] for name in content}):
            sample = (content[f"{key}.jpg"], json.loads(content[f"{key}.json"]), content[f"{key}.txt"].decode())
            found[f"{path.stem}/{key}"] = sample
    assert list(found) == [t["image_id"] for t in truth]

    for record, (jpg, metadata, caption) in zip(truth, found.values(), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(jpg)), dtype=float)
        rendered = np.asarray(render(Scene.from_json(record["scene"])), dtype=float)
        # JPEG halves the resolution of color: edges differ, areas do not.
        assert np.abs(pixels - rendered).mean() < 5
        assert np.median(np.abs(pixels - rendered)) <= 3
        assert metadata["url"] == f"shapes://test/3/{record['index']}"
        assert f"{record['image_id'].split('/')[0]}/{metadata['key']}" == record["image_id"]
        assert metadata["status"] == "success"
        assert metadata["caption"] == caption != ""


@pytest.mark.slow
def test_a_complete_download_is_left_alone(downloaded: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in downloaded.rglob("*")}
    summary = download_shapes(downloaded, **ARGUMENTS)
    assert summary == ImagesSummary(out=downloaded, images=40, shards=3, already_complete=True)
    assert "complete already, nothing to do: 40 images in 3 tars" in str(summary)
    assert {p: p.stat().st_mtime_ns for p in downloaded.rglob("*")} == before


@pytest.mark.slow
def test_annotations_of_a_later_version_are_added(downloaded: Path, tmp_path: Path) -> None:
    out = tmp_path / "shapes"
    shutil.copytree(downloaded, out)
    shutil.rmtree(out / "classification")
    assert download_shapes(out, **ARGUMENTS).already_complete
    assert read_tree(out) == read_tree(downloaded)


@pytest.mark.slow
def test_other_arguments_are_refused(downloaded: Path) -> None:
    before = read_tree(downloaded)
    with pytest.raises(UsageError, match=r"begun with seed = 3, limit = 40, this request has seed = 4, limit = 50:"):
        download_shapes(downloaded, **{**ARGUMENTS, "seed": 4, "limit": 50})
    assert read_tree(downloaded) == before


@pytest.mark.slow
def test_killed_then_incomplete_then_resumed_gives_the_same_bytes(downloaded: Path, tmp_path: Path) -> None:
    out = tmp_path / "shapes"
    for killer in (signal.SIGINT, signal.SIGKILL):
        _start_and_stop(out, killer)
        assert not (out / "download.json").exists()
    with pytest.raises(UsageError, match="begun with limit = 40, this request has limit = 41"):
        download_shapes(out, **{**ARGUMENTS, "limit": 41})

    broken = draw_scene("test", 3, BROKEN)
    failing = replace(FIRST, render_png=lambda s: b"not an image" if s == broken else render_png(s))
    with pytest.raises(FailedCheckError, match=r"downloaded: 39 of 40 images, missing: 1 \(1 x not_an_image\)"):
        download_shapes(out, **ARGUMENTS, world=failing)
    assert not (out / "images").exists()

    asked: list[Scene] = []
    counting = replace(FIRST, render_png=lambda s: asked.append(s) or render_png(s))
    assert not download_shapes(out, **ARGUMENTS, world=counting).already_complete
    assert len(asked) == 16  # the other shards were whole
    assert read_tree(out) == read_tree(downloaded)


def _start_and_stop(out: Path, killer: signal.Signals) -> None:
    """Kills a download once img2dataset has started its workers; nothing that it started may live on."""
    script = (
        "import json, sys; from pathlib import Path; from dialog_gen.shapes.fetch import download_shapes; "
        "download_shapes(Path(sys.argv[1]), **json.loads(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(out), json.dumps(ARGUMENTS)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        parent, started = psutil.Process(process.pid), []
        while len(started) < 4:  # img2dataset, its logger and two workers, or their resource tracker
            assert process.poll() is None
            time.sleep(0.05)
            started = parent.children(recursive=True)
        os.kill(process.pid, killer)
        process.communicate(timeout=300)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(started, timeout=120)
    # In a container whose first process reaps nothing, the dead stay as zombies.
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("name", ["limit", "shard_size"])
def test_bounds(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name.replace('_', ' ')} must be at least 1, got 0"):
        download_shapes(tmp_path / "out", **{**ARGUMENTS, name: 0})
    assert not (tmp_path / "out").exists()


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[download\]"):
        download_shapes(tmp_path, **ARGUMENTS)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_images_of_other_origin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError, match="holds images of an unknown download"):
        download_shapes(tmp_path, **ARGUMENTS)


def test_a_complete_folder_that_lost_a_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "download.json").write_text(json.dumps({"manifest": "shapes", **ARGUMENTS, "shards": 3}))
    with pytest.raises(UsageError, match=r"lacks 3 tars that its download.json counts, first 00000\.tar"):
        download_shapes(tmp_path, **ARGUMENTS)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match=r"cannot use .*out as the output folder"):
        download_shapes(tmp_path / "out", **ARGUMENTS)


def test_a_second_download_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="another download is writing"):
        download_shapes(tmp_path, **ARGUMENTS)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/val/7/12.png", 200),
        ("/dev/7/12.png", 404),
        ("/val/7/12.jpg", 404),
        ("/val/7/-1.png", 404),
        ("/val/7/12.png/..", 404),
        ("/", 404),
    ],
)
def test_server(path: str, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    with fetch._Server(FIRST) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
    assert response.status == status
    assert (body == render_png(draw_scene("val", 7, 12))) == (status == 200)
    assert capfd.readouterr() == ("", "")
