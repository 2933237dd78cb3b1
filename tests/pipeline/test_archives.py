import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.file_server import FileServer
from helpers.inputs import png

from dialog_gen.core.errors import DialogGenError, FailedCheckError, UsageError
from dialog_gen.download import archives, resumable
from dialog_gen.download.archives import FilesSummary, fetch_files
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.manifests import Manifest
from dialog_gen.sources.base import open_source

POLICY = FetchPolicy(allow_loopback=True, backoff_s=0.001, timeout_s=5, max_bytes=10, deadline_s=0.001)
NOISE = random.Random(0).randbytes(300_000)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in files.items():
            # Without the time of day: it would be in the hashes, and these are in names of tests.
            file.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def tarred(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for number, name in enumerate(names):
            data = png(number)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


IMAGES = zipped({"val/a.jpg": NOISE, "val/b.jpg": b"B"})
QUESTIONS = b'{"questions": []}'


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"val.zip": IMAGES, "q.json": QUESTIONS}).serving() as serving:
        yield serving


def manifest(*files: dict[str, Any], **more: Any) -> Manifest:
    head = {"name": "mine", "description": "d", "licence": "l"}
    source = {"kind": "archives", "files": {"val": files, "train": files[:1]}}
    return Manifest.model_validate({**head, "source": source, **more})


def both(server: FileServer, **changes: Any) -> Manifest:
    """An archive and a file; `changes` to what is said of the archive."""
    return manifest(
        {"url": f"{server.url}/val.zip", "into": "images/val", **changes},
        {"url": f"{server.url}/q.json", "into": "vqa"},
    )


def content(out: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    found.pop("download.json", None)
    return found


DONE = {"images/val/a.jpg": NOISE, "images/val/b.jpg": b"B", "vqa/q.json": QUESTIONS}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_fetched_checked_unpacked(server: FileServer, tmp_path: Path) -> None:
    promised = {"sha256": sha256(IMAGES), "md5": hashlib.md5(IMAGES).hexdigest(), "size_bytes": len(IMAGES)}
    found = fetch_files(both(server, **promised), "val", tmp_path / "out", POLICY, None)
    assert content(tmp_path / "out") == DONE
    assert found == FilesSummary(out=tmp_path / "out", files=2, fetched_bytes=len(IMAGES) + len(QUESTIONS))
    record = json.loads((tmp_path / "out/download.json").read_text())
    assert record["files"]["images/val"] == {
        "from": f"{server.url}/val.zip",
        "size_bytes": len(IMAGES),
        "sha256": sha256(IMAGES),
        "unpacked_files": 2,
    }
    assert record["files"]["vqa/q.json"]["sha256"] == sha256(QUESTIONS)


def test_what_is_there_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    fetch_files(both(server), "train", tmp_path, POLICY, None)
    assert [path for path, _ in server.requests] == ["/val.zip"]
    fetch_files(both(server), "val", tmp_path, POLICY, None)
    assert [path for path, _ in server.requests] == ["/val.zip", "/q.json"]
    again = fetch_files(both(server), "val", tmp_path, POLICY, None)
    assert (again.fetched_bytes, len(server.requests)) == (0, 2)
    assert "complete already" in str(again)
    assert content(tmp_path) == DONE
    # What was cut is told, and what somebody removed comes again.
    (tmp_path / "vqa/q.json").write_bytes(QUESTIONS[:-1])
    with pytest.raises(
        UsageError, match=rf"q\.json has {len(QUESTIONS) - 1} bytes, it had {len(QUESTIONS)}: remove it"
    ):
        fetch_files(both(server), "val", tmp_path, POLICY, None)
    (tmp_path / "vqa/q.json").unlink()
    fetch_files(both(server), "val", tmp_path, POLICY, None)
    assert content(tmp_path) == DONE


@pytest.mark.parametrize("validator", ["ETag", "Last-Modified"])
def test_goes_on_where_it_broke_off(server: FileServer, tmp_path: Path, validator: str) -> None:
    server.validator = validator
    server.cut_after = [100_000, 0, 100_000]
    fetch_files(both(server), "val", tmp_path, replace(POLICY, retries=1), None)
    assert content(tmp_path) == DONE
    starts = [asked for path, asked in server.requests if path == "/val.zip"]
    assert starts[0] is None
    assert all(starts[1:])
    assert server.sent < len(IMAGES) + len(QUESTIONS) + 3 * (1 << 16)


@pytest.mark.parametrize(
    "change", ["weak", "no validator", "no ranges", "another range", "another file", "part too long"]
)
def test_begins_again_where_it_must(server: FileServer, tmp_path: Path, change: str) -> None:
    server.validator = {"weak": "weak", "no validator": None}.get(change, "ETag")
    server.knows_ranges = change != "no ranges"
    server.shifts_ranges = change == "another range"
    server.cut_after, server.statuses = [200_000], [200, 500]
    with pytest.raises(FailedCheckError, match=r"val\.zip could not be fetched: http_5xx: .* run again to continue"):
        fetch_files(both(server), "val", tmp_path, replace(POLICY, retries=0), None)
    part = tmp_path / ".download/fetched/images/val/val.zip.part"
    assert 0 < part.stat().st_size <= 200_000
    if change == "another file":
        server.files["val.zip"] = zipped({"c.jpg": NOISE[::-1]})
    if change == "part too long":
        part.write_bytes(bytes(len(IMAGES) + 1))
    found = fetch_files(both(server), "val", tmp_path, POLICY, None)
    assert found.fetched_bytes == len(server.files["val.zip"]) + len(QUESTIONS)
    expected = {"images/val/c.jpg": NOISE[::-1], "vqa/q.json": QUESTIONS} if change == "another file" else DONE
    assert content(tmp_path) == expected


def test_errors_that_pass(server: FileServer, tmp_path: Path) -> None:
    server.statuses = [503, 500]
    fetch_files(both(server), "val", tmp_path, POLICY, None)
    assert content(tmp_path) == DONE


def test_a_server_that_always_breaks_off_at_the_same_place(server: FileServer, tmp_path: Path) -> None:
    server.validator = None
    server.cut_after = [100_000] * 100
    with pytest.raises(FailedCheckError, match="truncated: 100000 of"):
        fetch_files(both(server), "val", tmp_path, POLICY, None)
    assert len(server.requests) == 2 * (POLICY.retries + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, f"has the sha256 {sha256(IMAGES)} where the manifest promises 000"),
        ({"md5": "0" * 32}, f"has the md5 {hashlib.md5(IMAGES).hexdigest()} where the manifest promises 000"),
        ({"size_bytes": len(IMAGES) + 1}, f"has {len(IMAGES)} bytes where the manifest promises {len(IMAGES) + 1}"),
        ({"size_bytes": 99}, f"too_many_bytes: {len(IMAGES)} bytes announced, at most 99"),
    ],
)
def test_not_what_was_promised(server: FileServer, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FailedCheckError, match=message):
        fetch_files(both(server, **changes), "val", tmp_path, POLICY, None)
    assert content(tmp_path) == {}


def test_not_found(server: FileServer, tmp_path: Path) -> None:
    wanted = manifest({"url": f"{server.url}/no.zip", "into": "x", "by_hand": "press the button at a.example"})
    with pytest.raises(FailedCheckError, match=r"http_404.*Or get it by hand: press .*; put it into .* as no\.zip"):
        fetch_files(wanted, "val", tmp_path, POLICY, None)
    assert len(server.requests) == 1


def test_loopback_is_refused_by_default(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(FailedCheckError, match="blocked_address"):
        fetch_files(both(server), "val", tmp_path, FetchPolicy(), None)
    assert server.requests == []


def test_a_hostile_archive(server: FileServer, tmp_path: Path) -> None:
    server.files["val.zip"] = zipped({"ok.jpg": b"", "../../evil": b"x"})
    with pytest.raises(
        FailedCheckError, match=r"val\.zip was not unpacked: '\.\./\.\./evil' leads outside.*was removed"
    ):
        fetch_files(both(server), "val", tmp_path / "a/b/out", POLICY, None)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("by", ["path", "by_hand"])
def test_a_file_of_ones_own(tmp_path: Path, by: str) -> None:
    """It is looked at where it lies, and stays there."""
    out = tmp_path / "out"
    own = out / "own.zip" if by == "by_hand" else tmp_path / "own.zip"
    where = {"path": str(own)} if by == "path" else {"by_hand": "press the button", "name": "own.zip"}
    wanted = manifest({**where, "into": "images", "size_bytes": len(IMAGES)})
    with pytest.raises(UsageError, match=r"own\.zip is not there\.( Get it by hand: press the button; then put)?"):
        fetch_files(wanted, "val", out, POLICY, None)
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(IMAGES[:-1])
    with pytest.raises(UsageError, match=r"own\.zip has \d+ bytes .*: is it the right file"):
        fetch_files(wanted, "val", out, POLICY, None)
    own.write_bytes(IMAGES)
    assert fetch_files(wanted, "val", out, POLICY, None).fetched_bytes == 0
    assert own.exists()
    assert (out / "images/val/a.jpg").read_bytes() == NOISE
    if by == "by_hand":
        own.unlink()  # done with
    assert fetch_files(wanted, "val", out, POLICY, None).files == 1


def test_foreign_folders(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "images/val").mkdir(parents=True)
    with pytest.raises(UsageError, match="images/val exists, but is not part of a known download: move it away"):
        fetch_files(both(server), "val", tmp_path, POLICY, None)
    (tmp_path / "images/val").rmdir()
    fetch_files(both(server), "val", tmp_path, POLICY, None)
    with pytest.raises(UsageError, match=r"holds a download of mine, but yours was requested: choose another folder"):
        fetch_files(both(server).model_copy(update={"name": "yours"}), "val", tmp_path, POLICY, None)
    server.files["other.zip"] = IMAGES
    with pytest.raises(UsageError, match=r"was made of .*val\.zip, the manifest now says .*other\.zip"):
        fetch_files(both(server, url=f"{server.url}/other.zip"), "val", tmp_path, POLICY, None)
    for name in ("download.json", ".download/request.json"):
        (tmp_path / "o" / name).parent.mkdir(parents=True)
        (tmp_path / "o" / name).write_text('{"manifest": "mine"}')
        with pytest.raises(UsageError, match="holds a download of mine"):
            fetch_files(both(server), "val", tmp_path / "o", POLICY, None)
        (tmp_path / "o").rename(tmp_path / name[-6])


@pytest.mark.parametrize(
    ("split", "limit", "message"),
    [
        ("vall", None, "there is no split 'vall': did you mean 'val'"),
        ("val", 3, "--limit 3: mine comes in archives, whole or not at all; leave it out here"),
    ],
)
def test_wrong_use(server: FileServer, tmp_path: Path, split: str, limit: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fetch_files(both(server), split, tmp_path / "out", POLICY, limit)
    assert not (tmp_path / "out").exists()


def test_one_download_at_a_time(server: FileServer, tmp_path: Path) -> None:
    from dialog_gen.download.folder import locked

    with locked(tmp_path), pytest.raises(UsageError, match="another download is writing"):
        fetch_files(both(server), "val", tmp_path, POLICY, None)


@pytest.mark.parametrize("place", ["fetch_file", "unpack", "write_json", "_move", "remove"])
def test_interrupted_anywhere(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Before and after each step of each file; the next run ends with what an undisturbed one leaves."""
    real = getattr(archives, place)
    for moment in range(8):
        out = tmp_path / str(moment)
        left = [moment]

        def interrupted(*arguments: Any, left: list[int] = left) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            result = real(*arguments)
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patch:
            patch.setattr(archives, place, interrupted)
            try:
                fetch_files(both(server), "val", out, POLICY, None)
            except KeyboardInterrupt:
                pass
            else:
                assert moment >= 2
                break
        fetch_files(both(server), "val", out, POLICY, None)
        assert content(out) == DONE


def test_what_is_ready_is_not_fetched_again(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(archives, "_move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_files(both(server), "train", tmp_path, POLICY, None)
    fetch_files(both(server), "train", tmp_path, POLICY, None)
    assert content(tmp_path) == {name: data for name, data in DONE.items() if name.startswith("images")}
    assert len(server.requests) == 1


def test_a_full_disk(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x.part")

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "_continue", full)
        with pytest.raises(DialogGenError, match=r"No space left on device\. Free .*; what is finished is kept"):
            fetch_files(both(server), "val", tmp_path, POLICY, None)
    fetch_files(both(server), "val", tmp_path, POLICY, None)
    assert content(tmp_path) == DONE


def test_killed(server: FileServer, tmp_path: Path) -> None:
    """kill -9 in the middle of a file; then it is gone on with."""
    code = (
        "import sys; from pathlib import Path; from dialog_gen.download import archives, http\n"
        "from dialog_gen.download.manifests import load_manifest\n"
        "policy = http.FetchPolicy(allow_loopback=True)\n"
        "print(archives.fetch_files(load_manifest(sys.argv[1]), 'val', Path(sys.argv[2]), policy, None))"
    )
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'description = "d"\nlicence = "l"\n[source]\nkind = "archives"\n[[source.files.val]]\n'
        f'url = "{server.url}/val.zip"\ninto = "images/val"\n'
    )
    out = tmp_path / "out"
    server.hold_after = 200_000
    with subprocess.Popen([sys.executable, "-c", code, str(toml), str(out)]) as process:
        part = out / ".download/fetched/images/val/val.zip.part"
        until = time.monotonic() + 300
        while not (part.exists() and part.stat().st_size > 100_000):
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    server.released.set()
    server.hold_after = None
    done = subprocess.run(
        [sys.executable, "-c", code, str(toml), str(out)], capture_output=True, text=True, timeout=300, check=True
    )
    assert "1 file; 0.3 MB fetched" in done.stdout
    assert content(out) == {name: data for name, data in DONE.items() if name.startswith("images")}
    assert [bool(asked) for _, asked in server.requests] == [False, True]


TARS = {f"x-{n:02d}.tar": tarred([f"{n}{k}.{e}" for k in range(3) for e in ("jpg", "txt")]) for n in range(4)}


def webdataset(server: FileServer, **more: Any) -> Manifest:
    tars = {"train": [f"{server.url}/x-{{00..03}}.tar"], "val": [f"{server.url}/x-03.tar"]}
    return manifest({"url": "http://x/y", "into": "x"}, **{"source": {"kind": "webdataset", "tars": tars}, **more})


@pytest.mark.parametrize(("limit", "tars"), [(None, 4), (1, 1), (3, 1), (4, 2), (99, 4)])
def test_as_many_tars_as_needed(server: FileServer, tmp_path: Path, limit: int | None, tars: int) -> None:
    server.files = TARS
    found = fetch_files(webdataset(server), "train", tmp_path, POLICY, limit)
    assert (found.files, found.images) == (tars, 3 * tars)
    assert content(tmp_path) == {f"images/{name}": TARS[name] for name in list(TARS)[:tars]}
    images = [image for shard in open_source(str(tmp_path / "images"), shard_size=100) for image in shard.read()]
    assert len(images) == 3 * tars
    assert fetch_files(webdataset(server), "train", tmp_path, POLICY, None).images == 12
    assert len(server.requests) == 4
    with pytest.raises(UsageError, match="holds a download of mine train, but mine val was requested"):
        fetch_files(webdataset(server), "val", tmp_path, POLICY, None)


def test_fewer_images_than_expected(server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.files = TARS
    fetch_files(webdataset(server, rows={"train": 13}), "train", tmp_path, POLICY, None)
    assert "12 images where the manifest expects 13" in caplog.text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>" * 999, r"x-00\.tar is no tar"),
        (tarred(["a.txt"]), r"x-00\.tar holds no images\. What came from .* was removed"),
    ],
)
def test_tars_of_no_use(server: FileServer, tmp_path: Path, data: bytes, message: str) -> None:
    server.files = {**TARS, "x-00.tar": data}
    with pytest.raises(FailedCheckError, match=message):
        fetch_files(webdataset(server), "train", tmp_path, POLICY, None)
    assert not (tmp_path / "images").exists()
    server.files = TARS
    assert fetch_files(webdataset(server), "train", tmp_path, POLICY, None).images == 12


def test_another_kind(tmp_path: Path) -> None:
    shapes = manifest({"url": "http://x/y", "into": "x"}, source={"kind": "embedded"})
    with pytest.raises(UsageError, match="does not consist of files: its source is of kind 'embedded'"):
        fetch_files(shapes, "val", tmp_path, POLICY, None)


def test_what_it_is_good_for(server: FileServer, tmp_path: Path) -> None:
    wanted = both(server).model_copy(
        update={"becomes": {"vqa": "--images {out}/images --questions {out}/{split}.json"}}
    )
    found = fetch_files(wanted, "val", tmp_path / "a b", POLICY, None)
    folder = tmp_path / "a b"
    assert found.uses == {"vqa": f"--images '{folder}'/images --questions '{folder}'/val.json"}
    assert f"dialog-eval vqa --images '{folder}'/images" in str(found)
    assert os.linesep.join(str(found).splitlines()[:1]) == f"{folder}: 2 files; 0.3 MB fetched"
