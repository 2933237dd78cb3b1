import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.bad_server import GIGABYTES, JPEG, OUTCOMES, BadServer, image_bytes
from PIL import Image

from dialog_gen.cli.app import app
from dialog_gen.core.errors import DialogGenError, MissingExtraError, UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.download.folder import locked
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.manifests import DownloadOptions, load_manifest
from dialog_gen.download.outcomes import FINAL
from dialog_gen.download.url_lists import ImagesSummary, UrlSource, download_url_list, list_request
from dialog_gen.sources.base import open_source

POLICY = FetchPolicy(
    allow_loopback=True, max_bytes=1 << 20, timeout_s=1.5, deadline_s=3, retries=2, backoff_s=0.1, max_backoff_s=2
)
# Threads enough for all URLs that keep one waiting.
OPTIONS = DownloadOptions(policy=POLICY, shard_size=32, processes=1, threads=16)
REQUEST = {"manifest": "bad", "limit": None}


def write_list(into: Path, urls: list[str | None], rows_per_file: int = 32) -> int:
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    into.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(urls), rows_per_file)):
        some = urls[start : start + rows_per_file]
        table = pa.table({"url": some, "caption": [f"caption of {url}" for url in some]}, schema)
        pq.write_table(table, into / f"{number:05d}.parquet")
    return len(urls)


def download(out: Path, urls: list[str | None], options: DownloadOptions = OPTIONS, **more: Any) -> ImagesSummary:
    return download_url_list(lambda into: write_list(into, urls), out, request=REQUEST, options=options, **more)


def outcomes_by_url(images: Path) -> dict[str | None, list[str]]:
    """What img2dataset's Parquet files beside the tars say of each row."""
    found: dict[str | None, list[str]] = {}
    for path in sorted(images.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found.setdefault(row["url"], []).append(row["error_message"] or row["status"])
    return found


def stored(images: Path) -> dict[str, tuple[bytes, dict[str, Any], str]]:
    """URL -> JPEG, metadata and caption in the tars."""
    found: dict[str, tuple[bytes, dict[str, Any], str]] = {}
    for path in sorted(images.glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}
        for name in (name for name in content if name.endswith(".json")):
            key, metadata = name.removesuffix(".json"), json.loads(content[name])
            assert metadata["url"] not in found
            found[metadata["url"]] = (content[f"{key}.jpg"], metadata, content[f"{key}.txt"].decode())
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[BadServer]:
    with BadServer() as server:
        yield server


@pytest.fixture(scope="module")
def expected(server: BadServer) -> dict[str | None, list[str]]:
    """The outcomes of each row by URL, in order."""
    expected: dict[str | None, list[str]] = {server.url(path): [outcome] for path, outcome in OUTCOMES.items()}
    expected |= {None: ["no_url"], "": ["no_url"], "no url at all": ["bad_url"], "http://a..b/": ["bad_url"]}
    expected |= {server.url("/good", "https"): ["tls"]}
    expected |= {url: ["blocked_scheme"] for url in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:image/png,x")}
    private = ("http://10.0.0.1/x", "http://169.254.169.254/", "http://[::ffff:10.0.0.1]/", "http://0.0.0.0/")
    expected |= {url: ["blocked_address"] for url in private}
    for path in ("/good", "/404"):
        expected[server.url(path)] += ["duplicate_url", "duplicate_url"]
    return expected


@pytest.fixture(scope="module")
def rows(expected: dict[str | None, list[str]]) -> list[str | None]:
    """First all URLs, then those that come again."""
    again = [url for url, outcomes in expected.items() for _ in outcomes[1:]]
    return [*expected, *again]


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory, rows: list[str | None]) -> tuple[Path, ImagesSummary]:
    out = tmp_path_factory.mktemp("download") / "bad"
    with pytest.MonkeyPatch.context() as patch:
        # Nothing listens there: what went through this proxy would fail.
        patch.setenv("http_proxy", "http://127.0.0.1:9")
        return out, download(out, rows)


@pytest.mark.slow
def test_every_url_ends_in_its_class_and_the_counts_add_up(
    downloaded: tuple[Path, ImagesSummary],
    server: BadServer,
    expected: dict[str | None, list[str]],
    rows: list[str | None],
) -> None:
    out, summary = downloaded
    assert {url: sorted(found) for url, found in outcomes_by_url(out / "images").items()} == {
        url: sorted(wanted) for url, wanted in expected.items()
    }
    counts = Counter(outcome for wanted in expected.values() for outcome in wanted)
    report = unsealed((out / "link_rot.json").read_bytes())
    assert report["outcomes"] == counts
    assert report["rows"] == len(rows) == sum(report["outcomes"].values())
    assert report["urls"] == len(rows) - 6
    assert (report["opted_out"], report["duplicates"], report["retries"]) == (2, 4, 0)
    assert report["success_rate"] == pytest.approx(counts["success"] / (len(rows) - 6), abs=1e-6)
    # Two opted out, two are too large, two have too many pixels, one is damaged: all of them still there.
    assert report["alive"] == pytest.approx((counts["success"] + 7) / (len(rows) - 6), abs=1e-6)
    assert (summary.images, summary.shards, summary.already_complete) == (counts["success"], 2, False)
    assert all(f"{outcome} " in str(summary) for outcome in counts)
    # Asked once, but three times where waiting may help; two gigabytes were not waited for.
    asked = {path: server.hits[path] for path in ("/404", "/429", "/500", "/silent", "/truncated", "/html", "/403")}
    assert asked == {"/404": 1, "/429": 1, "/500": 3, "/silent": 3, "/truncated": 3, "/html": 1, "/403": 1}
    assert max(server.sent["/huge"], server.sent["/huge-unannounced"]) < GIGABYTES / 20


@pytest.mark.slow
def test_what_is_stored(
    downloaded: tuple[Path, ImagesSummary], server: BadServer, expected: dict[str | None, list[str]]
) -> None:
    images = downloaded[0] / "images"
    found = stored(images)
    assert set(found) == {url for url, outcomes in expected.items() if outcomes[0] == "success"}
    for url, (jpg, metadata, caption) in found.items():
        source = image_bytes(size=(800, 600)) if url.endswith("/large") else JPEG
        assert metadata["sha256"] == hashlib.sha256(source).hexdigest()
        assert caption == metadata["caption"] == f"caption of {url}"
        with Image.open(BytesIO(jpg)) as image, Image.open(BytesIO(source)) as original:
            # The shorter side, and only of what is larger.
            assert image.size == ((448, 336) if url.endswith("/large") else original.size)
    assert sum(shard.count for shard in open_source(str(images), shard_size=1000)) == len(found)
    assert not [path.name for path in downloaded[0].iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_a_complete_download_is_left_alone_and_another_request_refused(
    downloaded: tuple[Path, ImagesSummary], rows: list[str | None]
) -> None:
    out, summary = downloaded
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*")}
    assert download(out, rows).to_json() == {**summary.to_json(), "already_complete": True}
    with pytest.raises(UsageError, match="begun with limit = None, this request has limit = 5: choose another"):
        download_url_list(len, out, request={**REQUEST, "limit": 5}, options=OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*")} == before


@pytest.mark.slow
def test_retry_fetches_only_what_failed_and_counts_each_url_once(
    downloaded: tuple[Path, ImagesSummary],
    server: BadServer,
    expected: dict[str | None, list[str]],
    rows: list[str | None],
) -> None:
    out, first = downloaded
    before = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    server.healed = True
    server.hits.clear()
    quick = DownloadOptions(
        policy=FetchPolicy(allow_loopback=True, max_bytes=1 << 20, timeout_s=1, deadline_s=1, retries=0),
        shard_size=32,
        processes=1,
        threads=16,
    )
    summary = download(out, rows, quick, retry_failed=True)
    failed = {url for url, outcomes in expected.items() if outcomes[0] not in FINAL}
    assert set(outcomes_by_url(out / "images" / "retry-1")) == failed
    assert set(stored(out / "images" / "retry-1")) == {server.url("/later")}
    assert [path for path in ("/good", "/noai", "/to-file", "/moved") if server.hits[path]] == []
    assert first.link_rot is not None
    assert summary.link_rot is not None
    changed = Counter(first.link_rot.outcomes)
    changed.subtract({"http_404": 1, "success": -1})
    assert summary.link_rot.outcomes == +changed
    assert (summary.link_rot.rows, summary.link_rot.retries, summary.images) == (len(rows), 1, first.images + 1)
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir() if path.is_file()} == before
    ids = [image_id for shard in open_source(str(out / "images"), shard_size=9) for image_id in shard.image_ids()]
    assert len(set(ids)) == len(ids) == summary.images


@pytest.mark.slow
def test_loopback_is_refused_before_any_connection(
    server: BadServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "list.csv"
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "127.1", "[::ffff:127.0.0.1]"):
            writer.writerow([f"http://{host}:{server.server_port}/good", "an image"])
    before = server.connections
    done = subprocess.run(
        ["dialog-gen", "download", str(listed), "--out", str(tmp_path / "out"), "--processes", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 1
    assert "not one of 7 URLs gave an image (7 x blocked_address)" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.connections == before


@pytest.mark.slow
def test_killed_and_run_again_ends_with_the_same_images(server: BadServer, tmp_path: Path) -> None:
    urls: list[str | None] = [server.url(f"/image/{number}") for number in range(150)]
    urls[20:20] = [server.url("/404"), server.url("/silent")]  # keeps the first shard unfinished for a while
    out = tmp_path / "out"
    write_list(tmp_path / "urls", urls)
    _start_and_kill(out, tmp_path / "urls")
    done = sorted(path.name for path in (out / ".download" / "images").glob("*_stats.json"))
    assert 0 < len(done) < 5
    (out / ".download" / "images" / done[0]).write_text("")  # killed while it was written
    before = server.hits.copy()
    summary = download(out, urls)
    # Rows of finished shards were not asked for again.
    assert sum((server.hits - before).values()) <= len(urls) - 32 * (len(done) - 1) + 2
    assert summary.link_rot is not None
    assert summary.link_rot.outcomes == {"success": 150, "http_404": 1, "timeout": 1}
    found = stored(out / "images")
    for row, url in enumerate(urls):
        if url and "/image/" in url:
            source = image_bytes(seed=int(url.rsplit("/", 1)[1]))
            _, metadata, _ = found.pop(url)
            assert metadata["sha256"] == hashlib.sha256(source).hexdigest()
            assert metadata["key"] == f"{row // 32 * 100 + row % 32:07d}"
    assert found == {}


def _start_and_kill(out: Path, urls: Path) -> None:
    """Kills a download when its first shard is finished; nothing that it started may live on."""
    script = (
        "import shutil, sys; from pathlib import Path; import test_download_images as t; "
        "t.download_url_list(lambda into: shutil.copytree(sys.argv[2], into) and 0, Path(sys.argv[1]), "
        "request=t.REQUEST, options=t.OPTIONS)"
    )
    here = Path(__file__)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parents[1])])}
    with subprocess.Popen([sys.executable, "-c", script, str(out), str(urls)], env=env) as process:
        while not any((out / ".download" / "images").glob("*_stats.json")):
            assert process.poll() is None
            time.sleep(0.01)
        started = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(started, timeout=120)
    # In a container whose first process reaps nothing, the dead stay as zombies.
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_full_disk_is_said_and_made_up_for(server: BadServer, tmp_path: Path) -> None:
    images = tmp_path / ".download" / "images"
    images.mkdir(parents=True)
    (images / "00000.tar").symlink_to("/dev/full")
    urls: list[str | None] = [server.url(f"/image/{number}") for number in range(3)]
    with pytest.raises(DialogGenError, match=r"No space left on device\. Free .*; what is finished is kept"):
        download(tmp_path, urls)
    (images / "00000.tar").unlink()
    assert download(tmp_path, urls).images == 3


def test_what_is_there_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path / "busy"), pytest.raises(UsageError, match="another download is writing"):
        download(tmp_path / "busy", [])
    (tmp_path / "foreign" / "images").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds images of an unknown download"):
        download(tmp_path / "foreign", [])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[download\]"):
        download(tmp_path / "new", [])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes", "--retry-failed"], "--retry-failed: shapes is no list of URLs; leave it out"),
        (["shapes", "--split", "tset"], "shapes has no split 'tset': did you mean 'test'"),
        (["list.csv", "--seed", "3"], "--seed 3: list is not drawn; leave it out"),
        (["list.csv", "--split", "val"], "list has no split 'val'"),
        (["list.csv"], "list.csv has no column 'url' .* for the url"),
        (["empty.csv"], "empty.csv: no row has a URL"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("link,caption\nhttp://a.test/,an image\n")
    (tmp_path / "empty.csv").write_text("url,caption\n,an image\n")
    with pytest.raises(UsageError, match=message):
        app(["download", *arguments, "--out", "out"], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_a_list_is_known_by_its_name_and_content(tmp_path: Path) -> None:
    def request() -> dict[str, Any]:
        chosen = load_manifest(str(tmp_path / "list.csv"))
        assert isinstance(chosen.source, UrlSource)
        return list_request(chosen.name, chosen.source, "train", 7)

    (tmp_path / "list.csv").write_text("url,caption\n")
    assert request() == json.loads(json.dumps(request()))  # as it is read again from download.json
    assert {
        "manifest": "list",
        "split": "train",
        "limit": 7,
        "lists": ["list.csv (12 bytes)"],
    }.items() <= request().items()
    before = request()
    (tmp_path / "list.csv").write_text("url,content\n")
    assert {key for key, value in request().items() if value != before[key]} == {"list_sha256"}


def write_shard(images: Path, name: str, outcomes: dict[str, int]) -> None:
    """What img2dataset leaves of a shard; the tar holds nothing."""
    images.mkdir(parents=True, exist_ok=True)
    (images / f"{name}.tar").touch()
    (images / f"{name}_stats.json").write_text(json.dumps({"count": sum(outcomes.values()), "status_dict": outcomes}))


def finished(out: Path, **changes: Any) -> Path:
    """A complete download of 5 URLs, of which one was had at the first retry, one at the second and one never."""
    write_shard(out / "images", "00000", {"success": 2, "http_404": 3})
    write_shard(out / "images" / "retry-1", "00000", {"success": 1, "http_404": 2})
    write_shard(out / "images" / "retry-2", "00000", {"success": 1, "http_404": 1})
    record = {**REQUEST, "shard_size": 32, "image_size": 336, "images": 2, "shards": 1, **changes}
    (out / "download.json").write_text(json.dumps(record))
    return out


def test_an_edited_list_is_noticed_and_an_old_folder_accepted(tmp_path: Path) -> None:
    def images(sha256: str) -> int:
        return download_url_list(
            lambda into: 0, tmp_path, request={**REQUEST, "list_sha256": [sha256]}, options=OPTIONS
        ).images

    finished(tmp_path)  # of a version that did not note the content
    assert images("a") == 4
    finished(tmp_path, list_sha256=["a"])
    assert images("a") == 4
    with pytest.raises(UsageError, match=r"begun with list_sha256 = \['a'\], this request has list_sha256 = \['b'\]"):
        images("b")


@pytest.mark.parametrize("retry_failed", [False, True])
@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["images/00000.tar"], r"lacks 1 tar that its download\.json counts, first 00000\.tar"),
        (["images/00000_stats.json"], "images lacks the tar or the statistics of 1 shard, first 00000"),
        (["images/retry-1/00000.tar"], "retry-1 lacks the tar or the statistics of 1 shard, first 00000"),
        (["images/retry-2/00000_stats.json"], "retry-2 lacks the tar or the statistics of 1 shard, first 00000"),
        (["images/retry-1/00000.tar", "images/retry-1/00000_stats.json"], "retry-1 has outcomes of 0 of the 3 URLs"),
    ],
)
def test_a_lost_file_is_noticed(tmp_path: Path, lost: list[str], message: str, retry_failed: bool) -> None:
    finished(tmp_path)
    for name in lost:
        (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=message):
        download(tmp_path, [], retry_failed=retry_failed)


def test_folders_of_other_names_are_no_retries(tmp_path: Path) -> None:
    finished(tmp_path)
    for name in ("retry-1.bak", "retry-", "retry-x", "retry-01"):
        write_shard(tmp_path / "images" / name, "00000", {"success": 9})
    assert download(tmp_path, []).images == 4


def test_a_tar_of_another_size_is_noticed(tmp_path: Path) -> None:
    finished(tmp_path, tar_bytes={"00000.tar": 0})
    assert download(tmp_path, [], retry_failed=False).already_complete
    (tmp_path / "images" / "00000.tar").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"1 tar of another size than its download\.json tells, first 00000\.tar"):
        download(tmp_path, [], retry_failed=False)


def test_an_outcome_that_does_not_exist_is_noticed(tmp_path: Path) -> None:
    finished(tmp_path)
    stats = tmp_path / "images" / "00000_stats.json"
    assert download(tmp_path, []).images == 4
    stats.write_text(stats.read_text().replace("http_404", "http_405"))
    with pytest.raises(UsageError, match="images lacks the tar or the statistics of 1 shard, first 00000"):
        download(tmp_path, [])
