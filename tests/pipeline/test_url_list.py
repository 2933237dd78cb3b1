import csv
import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.file_server import FileServer

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.manifests import Manifest, load_manifest
from dialog_gen.download.url_lists import SCHEMA, UrlSource, prepare_url_list

POLICY = FetchPolicy(allow_loopback=True, backoff_s=0.001)
Row = tuple[str | None, str | None]

ROWS: list[Row] = [(f"https://a.example/{n}.jpg", f'a "quoted", caption with\ttab\nand line {n}') for n in range(10)]
PLAIN: list[Row] = [(f"https://a.example/ü{n}.jpg", f"it 's no. {n}, \"so") for n in range(10)]


def as_csv(rows: list[Row]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([("url", "caption"), *rows])
    return buffer.getvalue().encode()


def as_tsv(rows: list[Row]) -> bytes:
    return "".join(f"{u or ''}\t{c or ''}\n" for u, c in [("url", "caption"), *rows]).encode()


def as_jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps({"id": 1, "url": u, "caption": c}) + "\n" for u, c in rows).encode()


def as_parquet(rows: list[Row]) -> bytes:
    buffer = io.BytesIO()
    urls, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"id": range(len(rows)), "caption": captions, "url": urls}), buffer)
    return buffer.getvalue()


def as_doubled_parquet() -> bytes:
    buffer = io.BytesIO()
    columns = [["first"], ["a caption"], ["second"]]
    pq.write_table(pa.table([pa.array(column) for column in columns], names=["url", "caption", "url"]), buffer)
    return buffer.getvalue()


def prepare(path: Path, limit: int | None = None, **options: Any) -> list[Row]:
    """The rows that a bare list, or one with options of a manifest, becomes."""
    source = load_manifest(str(path)).source
    assert isinstance(source, UrlSource)
    given = {key: options.pop(key) for key in list(options) if key in ("header", "url", "caption")}
    into = path.parent / "into"
    source = UrlSource.model_validate(source.model_copy(update=given).model_dump())
    rows = prepare_url_list(source, "train", into, limit, out=path.parent, policy=POLICY, **options)
    found = read(into)
    assert rows == len(found)
    return found


def read(into: Path) -> list[Row]:
    tables = [pq.read_table(path) for path in sorted(into.glob("*.parquet"))]
    assert {table.schema for table in tables} <= {SCHEMA}
    return [(row["url"], row["caption"]) for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("write", "name", "rows"),
    [
        (as_parquet, "l.parquet", ROWS),
        *((as_csv, name, ROWS) for name in ("l.csv", "l.csv.gz")),
        *((as_tsv, name, PLAIN) for name in ("l.tsv", "l.tsv.gz")),
        *((as_jsonl, name, ROWS) for name in ("l.jsonl", "l.jsonl.gz")),
    ],
)
def test_all_formats(tmp_path: Path, write: Callable[[list[Row]], bytes], name: str, rows: list[Row]) -> None:
    data = write(rows)
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert prepare(tmp_path / name) == rows


@pytest.mark.parametrize(
    ("rows_per_file", "limit", "files"), [(4, None, [4, 4, 2]), (5, None, [5, 5]), (4, 6, [4, 2]), (4, 99, [4, 4, 2])]
)
def test_files_of_a_size(tmp_path: Path, rows_per_file: int, limit: int | None, files: list[int]) -> None:
    (tmp_path / "l.csv").write_bytes(as_csv(ROWS))
    assert prepare(tmp_path / "l.csv", limit, rows_per_file=rows_per_file) == ROWS[:limit]
    paths = sorted((tmp_path / "into").glob("*.parquet"))
    assert [path.name for path in paths] == [f"{number:05d}.parquet" for number in range(len(files))]
    assert [pq.read_metadata(path).num_rows for path in paths] == files


def test_cc3m(tmp_path: Path) -> None:
    """No header, no quoting: quotes and carriage returns in captions mean nothing, and no row is lost."""
    lines: list[tuple[bytes, Row]] = [
        (b'"unbalanced quote\thttps://a/1', ("https://a/1", '"unbalanced quote')),
        (b"a lone\rcarriage return\thttps://a/2\r", ("https://a/2", "a lone\rcarriage return")),
        (b"one column", (None, None)),
        (b"three\tcolumns\thttps://a/3", (None, None)),
        (b"no url\t", (None, "no url")),
        (b"\t", (None, "")),
        (b"caf\xe9 , , \x85 \x1c \xe2\x80\xa8\thttps://a/4", ("https://a/4", "caf\ufffd , , \ufffd \x1c \u2028")),
        (b"\thttps://a/5", ("https://a/5", "")),
        (b"no line feed at the end\thttps://a/6", ("https://a/6", "no line feed at the end")),
    ]
    # Blank lines are no rows.
    (tmp_path / "cc3m.tsv").write_bytes(b"\r\n\n" + b"\n\n".join(line for line, _ in lines))
    assert prepare(tmp_path / "cc3m.tsv", header=False, url=1, caption=0) == [row for _, row in lines]


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "l.jsonl").write_text('{"url": "u", "caption": null}\n\nnonsense\n[]\n{"url": 3}\n{"caption": "c"}\n')
    assert prepare(tmp_path / "l.jsonl") == [("u", None), (None, None), (None, None), (None, None), (None, "c")]
    for told in (
        "2 rows of the list: not a JSON object (first: l.jsonl, line 3), counted as no_url",
        "1 row of the list: a URL that is not text (first: l.jsonl, line 5), counted as no_url",
        "1 row of the list: no URL (first: l.jsonl, line 6), counted as no_url",
    ):
        assert told in caplog.text


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (r'{"url": "u", "caption": "a cat \ud83d"}', ("u", "a cat \ufffd")),
        (r'{"url": "u\udc00", "caption": "\ud83d\udc31"}', ("u\ufffd", "\U0001f431")),
        ("[" * 100_000, (None, None)),
        ('{"url": "u", "caption": ' + "[" * 100_000, (None, None)),
        ('{"url": "u", "caption": ' + "1" * 5000 + "}", ("u", "1" * 5000)),
    ],
)
def test_an_odd_line_of_json_is_a_row_like_others(tmp_path: Path, line: str, row: Row) -> None:
    good = '{"url": "v", "caption": "c"}'
    (tmp_path / "l.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    assert prepare(tmp_path / "l.jsonl") == [("v", "c"), row, ("v", "c")]


def test_json_objects_may_leave_a_caption_out(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"url": "u"}\n{"caption": "b"}\n{"url": "w", "caption": "c"}\n')
    assert prepare(tmp_path / "l.jsonl", limit=2) == [("u", None), (None, "b")]
    (tmp_path / "n.jsonl").write_text('{"url": "u"}\n{"url": "v", "title": "b"}\n')
    (tmp_path / "into").rename(tmp_path / "before")
    with pytest.raises(
        UsageError, match=r"no column 'caption' \(or text, alt, top_caption\) for the caption: Known: title, url"
    ):
        prepare(tmp_path / "n.jsonl")


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        # A quote inside a quoted field that is not doubled.
        (['u,"a "b" c"', "v,d"], [(None, None), ("v", "d")]),
        # One that is never closed: also what would be taken for its end stays what it is.
        (['u,"a', "v,b", 'w,"c"', "x,d"], [(None, None), ("v", "b"), ("w", "c"), ("x", "d")]),
        (["u,a", 'v,"b', "w,c", "x,d"], [("u", "a"), (None, None), ("w", "c"), ("x", "d")]),
        (['u,"a', 'v,"b', "", 'w,"two', 'lines"'], [(None, None), (None, None), ("w", "two\nlines")]),
        # Longer than the parser takes.
        (["u," + "a" * 140_000, "v,b"], [(None, None), ("v", "b")]),
        (['u,"a', *["v,b"] * 50_000], [(None, None), *[("v", "b")] * 50_000]),
    ],
)
def test_a_stray_quote_spoils_one_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lines: list[str], rows: list[Row]
) -> None:
    (tmp_path / "l.csv").write_text("\n".join(["url,caption", 'first,"in\ntwo lines"', *lines]))
    assert prepare(tmp_path / "l.csv") == [("first", "in\ntwo lines"), *rows]
    assert f"a stray quote (first: l.csv, line {4 + rows.index((None, None))})" in caplog.text


def test_text_of_parquet_that_is_no_utf8(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(1, pa.array([0, 4], pa.int32()).buffers()[1], pa.py_buffer(b"caf\xe9"))
    for captions in (broken, pa.array([b"caf\xe9"])):
        pq.write_table(pa.table({"url": ["u"], "caption": captions}), tmp_path / "l.parquet")
        assert prepare(tmp_path / "l.parquet") == [("u", "caf\ufffd")]
        shutil.rmtree(tmp_path / "into")


def test_a_byte_order_mark_and_columns_that_are_not_wanted(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbfurl,id,caption\r\nu,1,c\r\n\r\nv,2\r\n")
    assert prepare(tmp_path / "l.csv") == [("u", "c"), (None, None)]


def test_names_numbers_and_no_captions(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("URL,TEXT\nu,c\n")
    assert prepare(tmp_path / "l.csv", url="URL", caption=None) == [("u", None)]
    (tmp_path / "l.parquet").write_bytes(as_parquet([("u", "c")]))
    (tmp_path / "into").rename(tmp_path / "before")
    assert prepare(tmp_path / "l.parquet", url=2, caption=1) == [("u", "c")]


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        (
            "l.csv",
            b"uri,caption\nu,c\n",
            {},
            "has no column 'url' .or image_url, img_url. for the url: did you mean 'uri'. Known: caption, uri. Choose",
        ),
        (
            "l.tsv",
            b"url\ttitle\nu\tc\n",
            {},
            'for the caption: Known: title, url. Choose one with --caption-column NAME, or --caption-column "" for',
        ),
        ("l.jsonl", b'{"link": "u"}\n', {}, "has no column 'url'"),
        ("l.parquet", as_parquet(ROWS), {"url": "link"}, "has no column 'link'"),
        ("l.parquet", as_parquet(ROWS), {"url": 3}, "has 3 columns, the url should be in number 3"),
        ("l.tsv", b"c\n", {"header": False, "url": 1, "caption": 0}, "has 1 column, the url should be in number 1"),
        ("l.parquet", b"no parquet", {}, "is no Parquet file"),
        ("l.parquet", as_parquet(ROWS)[:-9], {}, "is no Parquet file"),
        ("l.parquet", as_doubled_parquet(), {}, "has 2 columns 'url', which one is the url"),
        ("l.parquet", as_doubled_parquet(), {"url": 2}, "has 2 columns 'url': their names must differ"),
        ("l.csv", b"url,caption,url\nu,c,v\n", {}, "has 2 columns 'url', which one is the url"),
        ("l.csv", b'"url,caption\nu,c\n', {}, "l.csv, line 1 cannot be read, but should show the columns"),
        ("l.csv", b"", {}, "no row has a URL"),
        ("l.csv", b"url,caption\n,c\n", {}, "no row has a URL. Are format and columns right"),
        ("l.jsonl", b"url,caption\n", {}, "no row has a URL"),
        ("l.csv.gz", gzip.compress(as_csv(ROWS), mtime=0)[:-12], {}, "is damaged: "),
        ("l.tsv", gzip.compress(as_tsv(PLAIN), mtime=0)[:20] + b"xxxxx", {}, "is damaged: "),
    ],
)
def test_lists_at_fault(tmp_path: Path, name: str, data: bytes, options: dict[str, Any], message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        prepare(tmp_path / name, **options)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_complete_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(as_csv(ROWS))
    (tmp_path / ".into.part").mkdir()
    (tmp_path / ".into.part/00007.parquet").touch()  # an interrupted try
    assert prepare(tmp_path / "l.csv") == ROWS
    (tmp_path / "l.csv").write_bytes(as_csv(ROWS[:1]))
    assert prepare(tmp_path / "l.csv") == ROWS


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"1.tsv": as_tsv(PLAIN[:3]), "2.tsv": as_tsv(PLAIN[3:])}).serving() as serving:
        yield serving


def of(*files: dict[str, str]) -> UrlSource:
    source = {"kind": "urls", "format": "tsv", "files": {"train": files}}
    found = Manifest.model_validate({"name": "n", "description": "d", "licence": "l", "source": source}).source
    assert isinstance(found, UrlSource)
    return found


def test_lists_that_are_fetched(server: FileServer, tmp_path: Path) -> None:
    server.cut_after = [40]
    source = of({"url": f"{server.url}/1.tsv"}, {"url": f"{server.url}/2.tsv", "name": "two.tsv"})
    assert prepare_url_list(source, "train", tmp_path / "work/into", None, out=tmp_path, policy=POLICY) == len(PLAIN)
    assert read(tmp_path / "work/into") == PLAIN
    assert {path.name for path in tmp_path.iterdir()} == {"1.tsv", "two.tsv", "work"}
    with pytest.raises(UsageError, match="there is no split 'val': Known: train"):
        prepare_url_list(source, "val", tmp_path / "other", None, out=tmp_path, policy=POLICY)


def test_a_list_behind_a_form(server: FileServer, tmp_path: Path) -> None:
    source = of({"name": "form.tsv", "by_hand": "press Download at https://a.example"})
    with pytest.raises(UsageError, match=r"form\.tsv is not there\. Get it by hand: press Download at https://a\.ex"):
        prepare_url_list(source, "train", tmp_path / "into", None, out=tmp_path, policy=POLICY)
    (tmp_path / "form.tsv").write_bytes(as_tsv(PLAIN))
    assert prepare_url_list(source, "train", tmp_path / "into", None, out=tmp_path, policy=POLICY) == len(PLAIN)
    also = of({"url": f"{server.url}/gone.tsv", "by_hand": "press it"})
    with pytest.raises(FailedCheckError, match=r"http_404.*get it by hand: press it; put it into .* as gone\.tsv"):
        prepare_url_list(also, "train", tmp_path / "also", None, out=tmp_path, policy=POLICY)


def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    import tracemalloc

    peaks: list[int] = []
    for rows in (20_000, 80_000):
        path = tmp_path / f"{rows}.tsv"
        path.write_bytes(as_tsv([(f"https://a.example/{n}", "c" * 100) for n in range(rows)]))
        source = of({"path": str(path)})
        tracemalloc.start()
        prepare_url_list(source, "train", tmp_path / f"into-{rows}", None, out=tmp_path, policy=POLICY)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("place", [20, -40], ids=["rows", "footer"])
def test_a_damaged_prepared_list_is_made_again(tmp_path: Path, place: int) -> None:
    """An interrupted download continues with it; another URL or caption in it would be taken in silence."""
    path = tmp_path / "list.csv"
    path.write_bytes(as_csv(ROWS))
    assert prepare(path) == ROWS
    prepared = tmp_path / "into" / "00000.parquet"
    whole = prepared.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 1
    prepared.write_bytes(damaged)
    assert prepare(path) == ROWS
    assert prepared.read_bytes() == whole


def test_a_damaged_fetched_list_is_told(server: FileServer, tmp_path: Path) -> None:
    whole = server.files["1.tsv"]
    source = of({"url": f"{server.url}/1.tsv", "sha256": hashlib.sha256(whole).hexdigest()})
    prepare_url_list(source, "train", tmp_path / "into", None, out=tmp_path, policy=POLICY)
    (tmp_path / "1.tsv").write_bytes(whole[:-10])
    with pytest.raises(FailedCheckError, match=r"1\.tsv has the sha256 .* remove it, and run again"):
        prepare_url_list(source, "train", tmp_path / "again", None, out=tmp_path, policy=POLICY)
