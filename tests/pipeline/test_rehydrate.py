import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.inputs import png, sha256
from helpers.progress import Heard
from helpers.rows import files_of, gates_of, make_row, marks_of, rows_of, shard_of, write_shard
from PIL import Image

from dialog_gen.cli import app as cli
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.img2dataset.resize import resizer
from dialog_gen.publish import rehydrate as rehydrate_module
from dialog_gen.publish.compact import compact
from dialog_gen.publish.rehydrate import RehydrateSummary, rehydrate, rehydrate_with
from dialog_gen.upkeep.repair import repair

CONFIG: dict[str, Any] = {"schema_version": 3}
POLICY = FetchPolicy(allow_loopback=True, retries=0, timeout_s=5)


class Web(ThreadingHTTPServer):
    """Serves `pages`: path -> bytes, or a status."""

    disable_nagle_algorithm = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, bytes | int] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked = Counter[str]()
        self.hanging: set[str] = set()
        """Paths that are not answered before the server ends."""
        self.hangs, self.ended = threading.Event(), threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        web: Any = self.server
        web.asked[self.path] += 1
        if self.path in web.hanging:
            web.hangs.set()
            web.ended.wait()
            return
        page = web.pages.get(self.path, 404)
        self.send_response(page if isinstance(page, int) else 200)
        for name, value in web.headers.get(self.path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if isinstance(page, int) else page)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as the base class names it)
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


def photo(number: int) -> bytes:
    """Larger than a download stores."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((400, 500)).point(lambda value: (value + number) % 256).save(buffer, "PNG")
    return buffer.getvalue()


def stored(data: bytes) -> bytes:
    """As a download stores it."""
    return resizer()(io.BytesIO(data))[0]


def row_of(web: Web, number: int, source: bytes, image: bytes | None = None, **columns: Any) -> dict[str, Any]:
    """About an image that the web has at /NUMBER."""
    web.pages[f"/{number}"] = source
    image = source if image is None else image
    known = {"source_sha256": sha256(source)} if image is not source else {}
    made = {"images": [{"bytes": image, "path": None}], "image_sha256": sha256(image), "url": web.url(f"/{number}")}
    return make_row(number, **{**made, **known, **columns})


@pytest.fixture
def source(web: Web, tmp_path: Path) -> Path:
    """Three shards: 0 to 3, 10 to 13, 20 to 23; stored as they are, resized, rejected, without URL."""
    with open_writer(str(tmp_path / "source"), CONFIG) as store:
        for first in (0, 10, 20):
            rows = [
                row_of(web, first, png(first)),
                row_of(web, first + 1, photo(first), stored(photo(first))),
                row_of(web, first + 2, png(first + 2), status="rejected"),
                row_of(web, first + 3, png(first + 3), url=None),
            ]
            write_shard(store, shard_of(f"s{first:02d}", 4), rows)
    return tmp_path / "source"


@pytest.fixture
def bare(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without images, still in three shards."""
    monkeypatch.setattr("dialog_gen.publish.compact._stored_bytes", lambda *_: 600_000)
    compact(DatasetFolder(str(source)), str(tmp_path / "bare"), shard_mb=1, without_images=True)
    monkeypatch.undo()
    assert all(row["images"] is None for part in ("data", "rejects") for row in rows_of(tmp_path / "bare", part))
    return tmp_path / "bare"


def restored(bare: Path, out: Path, **options: Any) -> RehydrateSummary:
    return rehydrate_with(POLICY, DatasetFolder.existing(str(bare)), str(out), **options)


def test_a_rehydrated_dataset_is_repaired_without_the_web(web: Web, source: Path, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restored(bare, out)
    whole = rows_of(out)
    shards = sorted((out / "shards").iterdir())
    shards[0].write_text("garbage")
    # The images of a shard that was set aside are not fetched again: their links may be dead by now.
    command = json.loads((out / "command.json").read_text())
    assert command["arguments"]["dataset"] == str(bare)
    web.pages.clear()
    web.asked.clear()
    summary = repair(out)
    assert (summary.problem, summary.made) == (None, [shards[0].stem])
    assert rows_of(out) == whole
    assert not web.asked


def wanted(source: Path, part: str, lost: tuple[int, ...] = (3, 13, 23)) -> list[dict[str, Any]]:
    ids = {f"image {number}" for number in lost}
    return [{**row, "images": None} if row["image_id"] in ids else row for row in rows_of(source, part)]


def test_every_image_comes_back_to_its_row(source: Path, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = restored(bare, out)
    assert summary.outcomes == {"restored": 9, "no_url": 3}
    assert (summary.missing, summary.restored) == (9, 9)
    for part in ("data", "rejects"):
        assert rows_of(out, part) == wanted(source, part)
    assert verify(DatasetFolder(str(out))).problems == []
    noted = json.loads((out / "rehydrate.json").read_bytes())
    assert noted["outcomes"] == {"no_url": 3, "restored": 9}
    assert noted["shards"] == {f"part-0000{i}": {"no_url": 1, "restored": 3} for i in range(3)}
    assert DatasetFolder(str(out)).config()["compacted"]["images"] is True
    text = str(summary)
    assert "9 of 9 images restored, 3 have no URL" in text
    assert "no_url" in text


def test_what_is_gone_or_changed_is_counted_by_class(web: Web, source: Path, bare: Path, tmp_path: Path) -> None:
    web.pages["/0"] = 404
    web.pages["/1"] = png(77)  # another image
    web.pages["/2"] = b"<html>for sale</html>"
    web.pages["/10"] = 503
    web.headers["/11"] = {"X-Robots-Tag": "noai"}
    web.pages["/12"] = png(12)[:-20] + b"\0" * 20  # has no source_sha256
    summary = restored(bare, tmp_path / "out")
    once = dict.fromkeys(("http_404", "not_an_image", "http_5xx", "opted_out"), 1)
    assert summary.outcomes == {"restored": 3, "no_url": 3, "changed": 2, **once}
    for part in ("data", "rejects"):
        assert rows_of(tmp_path / "out", part) == wanted(source, part, (0, 1, 2, 3, 10, 11, 12, 13, 23))
    # What came back meanwhile is had from the result; what is there is not asked for again.
    web.pages["/0"] = png(0)
    web.asked.clear()
    again = restored(tmp_path / "out", tmp_path / "again")
    assert again.outcomes["present"] == 3
    assert again.restored == 1
    assert web.asked["/20"] == 0
    assert rows_of(tmp_path / "again")[0] == rows_of(source)[0]


def test_another_way_to_store_the_same_image(
    web: Web, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dialog_gen.publish.refetch.resizer", lambda: lambda stream: (png(1), 4, 4, 4, 4, None))
    assert restored(bare, tmp_path / "out").outcomes["encoded_differently"] == 3


def test_loopback_is_blocked_unless_allowed(web: Web, bare: Path, tmp_path: Path) -> None:
    summary = rehydrate(bare, tmp_path / "out")
    assert summary.outcomes == {"blocked_address": 9, "no_url": 3}
    assert summary.restored == 0
    assert web.asked.total() == 0


def test_many_row_groups(web: Web, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are fetched at a time; order and pairing hold."""
    monkeypatch.setattr("dialog_gen.publish.compact.ROWS_PER_GROUP", 2)
    compact(DatasetFolder(str(source)), str(tmp_path / "bare"), without_images=True)
    monkeypatch.setattr(rehydrate_module, "_GROUPS_AHEAD", 1)
    restored(tmp_path / "bare", tmp_path / "out", threads=3)
    assert rows_of(tmp_path / "out") == wanted(source, "data")


def test_an_interrupted_one_goes_on_with_the_next_shard(
    web: Web, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = tmp_path / "undisturbed"
    restored(bare, undisturbed)
    put_json, out = rehydrate_module.DatasetWriter.put_json, tmp_path / "out"
    for last in ("rehydrate.json", "shards/part-00001.json"):

        def interrupted(self: Any, name: str, value: Any, last: str = last) -> None:
            put_json(self, name, value)
            if name == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(rehydrate_module.DatasetWriter, "put_json", interrupted)
            with pytest.raises(KeyboardInterrupt):
                restored(bare, out)
    web.asked.clear()
    summary = restored(bare, out)
    assert summary.outcomes == {"restored": 9, "no_url": 3}
    assert sorted(web.asked) == ["/20", "/21", "/22"]
    assert files_of(out) == files_of(undisturbed)


# A second time


def test_what_failed_is_asked_for_again_and_nothing_else(web: Web, source: Path, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    web.pages |= {"/0": 404, "/1": png(77), "/2": 503, "/20": 503}
    web.headers["/10"] = {"X-Robots-Tag": "noai"}
    summary = restored(bare, out)
    assert summary.outcomes == {"restored": 4, "no_url": 3, "changed": 1, "opted_out": 1, "http_404": 1, "http_5xx": 2}
    assert "3 may still be restored: the same command tries them again" in str(summary)
    files = {path: data for path, data in files_of(out).items() if path.startswith(("data/", "rejects/", "shards/"))}
    inodes = {path: (out / path).stat().st_ino for path in files}
    # Nothing is back, and what failed otherwise is noted; files stay.
    web.pages["/0"] = 503
    web.asked.clear()
    assert restored(bare, out).outcomes["http_5xx"] == 3
    assert web.asked == {"/0": 1, "/2": 1, "/20": 1}
    assert {path: (out / path).stat().st_ino for path in files} == inodes
    # Some are back. What is there already is kept, though the web lost it meanwhile.
    web.pages |= {"/0": png(0), "/2": png(2), "/21": 404, "/22": 404}
    web.asked.clear()
    again = restored(bare, out)
    assert again.outcomes == {"restored": 6, "no_url": 3, "changed": 1, "opted_out": 1, "http_5xx": 1}
    assert web.asked == {"/0": 1, "/2": 1, "/20": 1}
    for part in ("data", "rejects"):
        assert rows_of(out, part) == wanted(source, part, (1, 3, 10, 13, 20, 23))
    assert verify(DatasetFolder(str(out))).problems == []
    web.pages["/20"] = png(20)
    assert restored(bare, out).restored == 7
    # It is complete but for what is settled.
    web.asked.clear()
    made = files_of(out)
    assert restored(bare, out).restored == 7
    assert web.asked.total() == 0
    assert files_of(out) == made


def test_loopback_that_is_allowed_the_second_time(web: Web, source: Path, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        blocked = rehydrate(bare, out)
        assert blocked.outcomes == {"blocked_address": 9, "no_url": 3}
    assert restored(bare, out).outcomes == {"restored": 9, "no_url": 3}
    assert rows_of(out) == wanted(source, "data")


def test_new_shards_come_before_what_failed(
    web: Web, source: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.pages["/0"] = 503
    out, write_shard = tmp_path / "out", rehydrate_module.DatasetWriter.write_shard
    with monkeypatch.context() as patch:

        def once(self: Any, manifest: Any, *tables: Any) -> Any:
            if manifest.shard != "part-00000":
                raise KeyboardInterrupt
            return write_shard(self, manifest, *tables)

        patch.setattr(rehydrate_module.DatasetWriter, "write_shard", once)
        with pytest.raises(KeyboardInterrupt):
            restored(bare, out)
    assert DatasetFolder(str(out)).shards() == ["part-00000"]
    web.asked.clear()
    web.pages["/0"] = png(0)
    assert restored(bare, out, threads=1).restored == 9
    assert list(web.asked) == ["/10", "/11", "/12", "/20", "/21", "/22", "/0"]


def test_gates_of_the_result_stay(web: Web, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    web.pages["/0"] = 503
    restored(bare, out)
    folder = DatasetFolder(str(out))
    with open_writer(str(out), folder.config()) as store:
        for manifest in list(store.manifests()):
            gates = [gates_of([["empty"]])] * manifest.accepted

            def marked(table: Any, gates: Any = gates) -> Any:
                field = table.schema.field("gates")
                return table.set_column(table.schema.get_field_index("gates"), field, pa.array(gates, field.type))

            store.rewrite(manifest, marked, gates_sha256="g")
    web.pages["/0"] = png(0)
    assert restored(bare, out).restored == 9
    assert {manifest.gates_sha256 for manifest in folder.manifests()} == {"g"}
    assert all(marks_of(row) == [["empty"]] for row in folder.rows())
    assert verify(folder).problems == []


def test_a_second_one_that_is_killed_loses_nothing(
    web: Web, source: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two of its files: what is back stays back, though the web lost it meanwhile."""
    web.pages["/0"] = 503
    restored(bare, tmp_path / "first")
    web.pages |= {"/0": png(0), **dict.fromkeys(("/1", "/2", "/10", "/11", "/12", "/20", "/21", "/22"), 404)}
    for last in itertools.count(1):
        out, steps = tmp_path / f"out-{last}", itertools.count(1)
        shutil.copytree(tmp_path / "first", out)
        with monkeypatch.context() as patch:
            for name in ("put", "remove"):
                real_step = getattr(rehydrate_module.DatasetWriter, name)

                def step(*arguments: Any, real: Any = real_step, last: int = last, steps: Any = steps) -> None:
                    if next(steps) == last:
                        raise KeyboardInterrupt
                    real(*arguments)

                patch.setattr(rehydrate_module.DatasetWriter, name, step)
            try:
                restored(bare, out)
                break
            except KeyboardInterrupt:
                pass
        assert restored(bare, out).outcomes == {"restored": 9, "no_url": 3}
        for part in ("data", "rejects"):
            assert rows_of(out, part) == wanted(source, part)
        assert verify(DatasetFolder(str(out))).problems == []
    assert last > 8


def test_a_source_that_was_gated_since_is_not_fetched_again(web: Web, bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    restored(bare, out)
    with open_writer(str(bare), DatasetFolder(str(bare)).config()) as store:
        for manifest in list(store.manifests()):
            store.rewrite(manifest, lambda table: table, gates_sha256="g")
    web.asked.clear()
    assert restored(bare, out).outcomes == {"restored": 9, "no_url": 3}
    assert web.asked.total() == 0
    assert {manifest.gates_sha256 for manifest in DatasetFolder(str(out)).manifests()} == {"g"}


HANGING = """
import sys
from dialog_gen.download.http import FetchPolicy
from dialog_gen.publish.rehydrate import rehydrate_with
from dialog_gen.dataset.folder import DatasetFolder
policy = FetchPolicy(allow_loopback=True, timeout_s=3600, deadline_s=None)
rehydrate_with(policy, DatasetFolder(sys.argv[1]), sys.argv[2])
"""


def test_ctrl_c_waits_for_no_server(web: Web, bare: Path, tmp_path: Path) -> None:
    web.hanging |= {"/10", "/12", "/20"}
    command = [sys.executable, "-c", HANGING, str(bare), str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert web.hangs.wait(120)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert DatasetFolder(str(tmp_path / "out")).shards() == ["part-00000"]
    web.hanging.clear()
    web.asked.clear()
    assert restored(bare, tmp_path / "out").restored == 9
    assert web.asked["/0"] == 0


def test_a_full_disk(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter.write_table", full)
        with pytest.raises(DialogGenError, match="No space left on device"):
            restored(bare, tmp_path / "out")
    assert DatasetFolder(str(tmp_path / "out")).shards() == []
    assert restored(bare, tmp_path / "out").restored == 9


@pytest.mark.parametrize(("flags", "code"), [(("--allow-loopback", "--json"), 0), (("--json",), 1)])
def test_the_command(
    bare: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    code: int,
) -> None:
    """Exit 1 if not one image could be restored."""
    monkeypatch.setattr(sys, "argv", ["dialog-gen", "rehydrate", str(bare), "--out", str(tmp_path / "out"), *flags])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == code
    said = capfd.readouterr()
    assert json.loads(said.out)["restored"] == (0 if code else 9)
    assert ("error: not one of 9 images could be restored" in said.err) == bool(code)


@pytest.mark.parametrize("columns", [{"url": None}, {"images": [{"bytes": b"", "path": "empty.png"}]}])
def test_nothing_to_fetch(
    web: Web,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    columns: dict[str, Any],
) -> None:
    """No URL, or an image that is there, though it has no bytes."""
    with open_writer(str(tmp_path / "bare"), CONFIG) as store:
        row = row_of(web, 0, png(0), images=None, status="unreadable", image_sha256=sha256(b""))
        write_shard(store, shard_of("s", 1), [row | columns])
    command = ["dialog-gen", "rehydrate", str(tmp_path / "bare"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr()
    assert (ended.value.code or 0, "there was nothing to fetch" in said.out) == (0, True)
    assert "network" not in said.out + said.err
    assert web.asked.total() == 0


def test_what_is_said_where_nothing_came() -> None:
    assert RehydrateSummary("out", Counter(blocked_scheme=3, http_404=1, no_url=9, present=2)).failure == (
        "not one of 4 images could be restored: 3 blocked_scheme (not http or https, perhaps after a redirect), "
        "1 http_404 (not found)."
    )
    assert "1 dns (the host has no address). Is there" in (RehydrateSummary("out", Counter(dns=1)).failure or "")
    for fine in (Counter(restored=1, dns=2), Counter(no_url=2), Counter(present=2), Counter[str]()):
        assert RehydrateSummary("out", fine).failure is None


def test_what_is_refused(bare: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lie in one another"):
        restored(bare, bare / "out")
    with pytest.raises(UsageError, match="rehydrated: None there"):
        restored(bare, source)
    file = bare / "data" / "part-00001.parquet"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"part-00001\.parquet has \d+ bytes"):
        restored(bare, tmp_path / "out")


def test_progress(web: Web, bare: Path, tmp_path: Path) -> None:
    for _ in range(2):
        heard = Heard()
        rehydrate(str(bare), str(tmp_path / "out"), allow_loopback=True, on_progress=heard)
        assert heard.ends() == {"fetching images": (12, 12)}
    with pytest.raises(UsageError, match="--threads 0 is too small: give at least 1"):
        rehydrate(bare, tmp_path / "new", threads=0)
