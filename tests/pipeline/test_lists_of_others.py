"""Lists as other programs write them: encodings, delimiters, names of columns, values, hostile sizes."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.bad_server import BadServer

from dialog_gen.cli.app import app
from dialog_gen.core.errors import UsageError
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.list_formats import list_rows
from dialog_gen.download.list_lines import MAX_LINE_BYTES
from dialog_gen.download.list_notes import ListNotes
from dialog_gen.download.manifests import load_manifest
from dialog_gen.download.run import download_images
from dialog_gen.download.url_lists import UrlSource, prepare_url_list

Row = tuple[str | None, str | None]
ROWS: list[Row] = [
    ("http://a.example/1", "größer"),
    ("http://a.example/2", "two, or more"),
    ("http://a.example/3", "喵"),
]


def prepare(
    path: Path, *, url: str | None = None, caption: str | None = None, limit: int | None = None
) -> tuple[list[Row], dict[str, tuple[int, str]]]:
    """The rows that a bare list becomes, and its notes: text -> number of rows and the first of them."""
    source = load_manifest(str(path)).source
    if url is not None or caption is not None:
        source = source.with_columns(url, caption)
    assert isinstance(source, UrlSource)
    into = path.parent / "into"
    prepare_url_list(source, "train", into, limit, out=path.parent, policy=FetchPolicy())
    rows = [
        (row["url"], row["caption"])
        for file in sorted(into.glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    notes = json.loads((into / "notes.json").read_text()) if (into / "notes.json").exists() else {}
    return rows, {text: (note["rows"], note["first"]) for text, note in notes.items()}


def lines(header: str, between: str, rows: list[Row] = ROWS) -> str:
    quote = '"' if between != "\t" else ""
    return "\n".join([header, *(f"{url}{between}{quote}{caption}{quote}" for url, caption in rows), ""])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", lines("url,caption", ",")),
        ("l.csv", lines("url;caption", ";")),
        ("l.csv", lines('"url"|"caption"', "|")),
        ("l.csv", lines("url\tcaption", "\t")),
        ("l.csv", lines("URL,TEXT", ",")),
        ("l.csv", "\r\n\n" + lines("Image_URL;Alt", ";").replace("\n", "\r\n")),
        ("l.tsv", lines("URL\ttop_caption", "\t")),
        ("l.jsonl", "\n".join(json.dumps({"URL": url, "TEXT": caption, "WIDTH": 3}) for url, caption in ROWS)),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_delimiters_and_usual_names(
    tmp_path: Path, name: str, text: str, encoding: str, packed: bool
) -> None:
    data = text.encode(encoding) if encoding != "utf-16-be" else b"\xfe\xff" + text.encode(encoding)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert prepare(path) == (ROWS, {})


def test_usual_names_in_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"similarity": [0.3], "TEXT": ["c"], "URL": ["u"]}), tmp_path / "l.parquet")
    assert prepare(tmp_path / "l.parquet") == ([("u", "c")], {})


@pytest.mark.parametrize(
    ("name", "text", "choice", "rows"),
    [
        ("l.csv", "url,caption,title\nu,c,t\n", {"caption": "title"}, [("u", "t")]),
        ("l.csv", "url;caption;title\nu;c;t\n", {"caption": "title", "url": "caption"}, [("c", "t")]),
        ("l.csv", "TEXT,top_caption,url\na,b,u\n", {"caption": "top_caption"}, [("u", "b")]),
        ("l.csv", "url,what\nu,c\n", {"caption": ""}, [("u", None)]),
        ("l.jsonl", '{"link": "u", "caption": "c"}\n', {"url": "link"}, [("u", "c")]),
        # Only a column of URLs: there are no captions to lose.
        ("l.csv", "url\nu\n", {}, [("u", None)]),
        # An exact name is preferred to a usual one.
        ("l.csv", "URL,url,TEXT,caption\na,u,b,c\n", {}, [("u", "c")]),
    ],
)
def test_chosen_columns(tmp_path: Path, name: str, text: str, choice: dict[str, Any], rows: list[Row]) -> None:
    (tmp_path / name).write_text(text)
    assert prepare(tmp_path / name, **choice) == (rows, {})


def test_one_url_per_line(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("http://a/1\n\n  http://a/2 \r\nhttp://a/3\ta caption\nhttp://a/4,5;6")
    rows: list[Row] = [("http://a/1", None), ("http://a/2", None), (None, None), ("http://a/4,5;6", None)]
    assert prepare(tmp_path / "l.txt") == (rows, {"more than a URL": (1, "l.txt, line 4")})


def test_captions_that_are_not_text(tmp_path: Path) -> None:
    captions = ["5", "-1.50", "1e400", "null", '"fine"', "true", '["a", "b"]', '{"a": 1}', "NaN"]
    (tmp_path / "l.jsonl").write_text("".join(f'{{"url": "u{n}", "caption": {c}}}\n' for n, c in enumerate(captions)))
    wanted = ["5", "-1.50", "1e400", None, "fine", None, None, None, None]
    assert prepare(tmp_path / "l.jsonl") == (
        [(f"u{number}", caption) for number, caption in enumerate(wanted)],
        {"a caption that is neither text nor a number: left out": (4, "l.jsonl, line 6")},
    )


@pytest.mark.parametrize(
    ("captions", "wanted"),
    [
        (pa.array([5, None]), ["5", None]),
        (pa.array([1.5, float("nan")]), ["1.5", None]),
        (pa.array([None, None]), [None, None]),
        (pa.array(["a", None]).dictionary_encode(), ["a", None]),
        (pa.array(["\ufffd", "b"]), ["\ufffd", "b"]),
    ],
)
def test_captions_of_parquet(tmp_path: Path, captions: pa.Array, wanted: list[str | None]) -> None:
    pq.write_table(pa.table({"url": ["u", "v"], "caption": captions}), tmp_path / "l.parquet")
    assert prepare(tmp_path / "l.parquet") == (list(zip(["u", "v"], wanted, strict=True)), {})


def test_every_row_that_cannot_be_used_has_a_reason(tmp_path: Path) -> None:
    long = "x" * (MAX_LINE_BYTES + 1)
    (tmp_path / "l.csv").write_bytes(
        f'url,caption\nu,1,2\nu,"a" b\n{long}\nu,"{long}\nv,\n,c\n'.encode() + b"w,caf\xe9\n"
    )
    rows, notes = prepare(tmp_path / "l.csv")
    assert rows == [*[(None, None)] * 4, ("v", ""), (None, "c"), ("w", "caf\ufffd")]
    assert notes == {
        "another number of columns than the first row": (1, "l.csv, line 2"),
        "a stray quote": (1, "l.csv, line 3"),
        "too long": (2, "l.csv, line 4"),
        "no URL": (1, "l.csv, line 7"),
        "bytes that are not UTF-8: replaced by U+FFFD": (1, "l.csv, line 8: byte 0xe9"),
    }
    lost = sum(count for note, (count, _) in notes.items() if "U+FFFD" not in note)
    assert lost == sum(url is None for url, _ in rows)


def test_notes_are_of_the_rows_within_the_limit(tmp_path: Path) -> None:
    bad = b'{"url": "u", "caption": "\xe9"}\n'
    (tmp_path / "l.jsonl").write_bytes(bad * 2 + b'{"url": "v"}\n' + bad * 5 + b"[]\n")
    rows, notes = prepare(tmp_path / "l.jsonl", limit=3)
    assert rows == [("u", "\ufffd"), ("u", "\ufffd"), ("v", None)]
    assert notes == {"bytes that are not UTF-8: replaced by U+FFFD": (2, "l.jsonl, line 1: byte 0xe9")}


def test_bytes_of_parquet_are_noted(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["u", "v", None], "caption": [b"a", b"caf\xe9", b"b"]}), tmp_path / "l.parquet")
    assert prepare(tmp_path / "l.parquet") == (
        [("u", "a"), ("v", "caf\ufffd"), (None, "b")],
        {
            "bytes that are not UTF-8: replaced by U+FFFD": (1, "l.parquet, row 2"),
            "no URL": (1, "l.parquet, row 3"),
        },
    )


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.csv", lines("url,caption", ",").encode("utf-16-le"), "line 1: the byte 0x00 does not occur in text"),
        ("l.csv", lines("url,caption", ",").encode("utf-16")[:-1], "l.csv is damaged: its utf-16"),
        ("l.csv", b"url,l\xe9gende\nu,c\n", "line 1: byte 0xe9 is not UTF-8"),
        (
            "l.csv",
            b"url,caption\nu,ascii\n" + b"u,caf\xe9\n" * 20,
            "l.csv, line 3: byte 0xe9 is not UTF-8, and 20 lines have such bytes: the list is in another encoding",
        ),
        ("l.csv", b"URL,TEXT,top_caption\nu,a,b\n", "has the columns TEXT and top_caption, which one is the caption"),
        ("l.csv", b"url;title\nu;a\n", "has no column 'caption' .or text, alt, top_caption. .* Known: title, url"),
        ("l.csv", b"x" * (MAX_LINE_BYTES + 1), "l.csv, line 1 cannot be read, but should show the columns: too long"),
        (
            "l.tsv.gz",
            gzip.compress(b"url\tcaption\n" + (b"x" * 1023 + b"\n") * (80 << 10)),
            "unpacks to more than 67108864 bytes",
        ),
    ],
)
def test_lists_that_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message) as caught:
        prepare(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    "column", [pa.array([["a", "b"]]), pa.array([True]), pa.array([{"a": 1}])], ids=lambda column: str(column.type)
)
def test_a_parquet_column_that_cannot_be_a_caption(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"url": ["u"], "caption": column, "title": ["t"]}), tmp_path / "l.parquet")
    with pytest.raises(
        UsageError, match=r"the column 'caption' holds .*, which is no caption: choose another with --cap"
    ):
        prepare(tmp_path / "l.parquet")
    assert prepare(tmp_path / "l.parquet", caption="title") == ([("u", "t")], {})


@pytest.mark.parametrize(
    "text",
    [
        b"x" * (10 * MAX_LINE_BYTES),  # a line without an end
        b'","\n' * 300_000,  # a CSV record without an end: each line closes a field and opens the next
    ],
)
def test_neither_a_line_nor_a_record_without_end_fills_the_memory(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "l.csv").write_bytes(b'url,caption\nu,c\n"' + text)
    source = load_manifest(str(tmp_path / "l.csv")).source
    assert isinstance(source, UrlSource)
    tracemalloc.start()
    usable = [row for row in list_rows(tmp_path / "l.csv", source, ListNotes()) if row != (None, None)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert usable == [("u", "c")]
    assert peak < 10 * MAX_LINE_BYTES


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_fifo, "not a regular file, but a pipe"),
        (make_device, "not a regular file, but a device"),
        (Path.mkdir, "Is a directory"),
    ],
)
@pytest.mark.parametrize("name", ["l.csv", "l.parquet", "l.txt", "m.toml"])
def test_only_regular_files_are_read(tmp_path: Path, make: Any, kind: str, name: str) -> None:
    make(tmp_path / name)
    with pytest.raises(UsageError, match=f"{name}: {kind}"):
        load_manifest(str(tmp_path / name))
    (tmp_path / "urls.toml").write_text(
        'description = "d"\nlicence = "l"\n[source]\nkind = "urls"\nformat = "csv"\n'
        f'files = {{ train = [{{ path = "{name}" }}] }}\n'
    )
    with pytest.raises(UsageError, match=f"{name}: {kind}"):
        download_images(str(tmp_path / "urls.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes", "--url-column", "a"], "--url-column and --caption-column are for lists of URLs"),
        (["l.txt", "--url-column", "a"], "--url-column a: url: a txt has one URL per line and no columns, got 'a'"),
        (["l.csv", "--url-column", "a"], "has no column 'a' for the url: Known: caption, url"),
        (["l.lst"], r"unknown manifest 'l\.lst'.* or a list of URLs \(\.tsv, \.csv"),
    ],
)
def test_wrong_use(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "l.txt").write_text("http://a.example/\n")
    (tmp_path / "l.csv").write_text("url,caption\nhttp://a.example/,c\n")
    with pytest.raises(UsageError, match=message):
        app(["download", *arguments, "--out", "out"], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_columns_by_number_without_a_header(tmp_path: Path) -> None:
    source = load_manifest("cc12m").source.with_columns("1", "")
    assert isinstance(source, UrlSource)
    assert (source.url, source.caption) == (1, None)


@pytest.mark.slow
def test_the_accounting_of_a_download(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given rows = outcomes; each row without a usable URL has a reason; another column is another request."""
    with BadServer() as server:
        good = server.url("/good")
        rows = [{"url": good, "caption": 5}, {"url": f"{good}?2", "caption": ["a"]}, {"url": 3}, {"caption": "c"}]
        (tmp_path / "l.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "nonsense\nno url\n")
        command = ["download", str(tmp_path / "l.jsonl"), "--out", str(tmp_path / "out"), "--allow-loopback"]
        command += ["--processes", "1"]
        app([*command, "--json"], standalone_mode=False)
        summary = json.loads(capsys.readouterr().out)
        assert summary["images"] == 2
        report = unsealed((tmp_path / "out/link_rot.json").read_bytes())
        assert (report["rows"], report["urls"], report["outcomes"]) == (6, 2, {"no_url": 4, "success": 2})
        assert report["success_rate"] == 1
        assert (
            report["list_notes"]
            == summary["list_notes"]
            == {
                "not a JSON object": {"rows": 2, "first": "l.jsonl, line 5"},
                "a caption that is neither text nor a number: left out": {"rows": 1, "first": "l.jsonl, line 2"},
                "a URL that is not text": {"rows": 1, "first": "l.jsonl, line 3"},
                "no URL": {"rows": 1, "first": "l.jsonl, line 4"},
            }
        )
        # Told again when there is nothing to do.
        app(command, standalone_mode=False)
        assert (
            "2 rows of the list: not a JSON object (first: l.jsonl, line 5), counted as no_url"
            in capsys.readouterr().out
        )
        with pytest.raises(UsageError, match=r"was begun with columns = .'url', 'caption'., this request has columns"):
            app([*command, "--url-column", "caption"], standalone_mode=False)
