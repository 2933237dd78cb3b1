import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from dialog_gen.cli.app import app
from dialog_gen.core.errors import UsageError
from dialog_gen.download.archives import ArchiveSource, WebdatasetSource
from dialog_gen.download.manifests import FilesSource, Manifest, load_manifest, shipped_manifests
from dialog_gen.download.url_lists import UrlSource

HEAD = 'description = "d"\nlicence = "CC0-1.0"\n'
EMBEDDED = f'{HEAD}rows = {{val = 1}}\nsource = {{kind = "embedded"}}\n'
URLS = f"""{HEAD}
[source]
kind = "urls"
format = "tsv"
[[source.files.train]]
path = "list.tsv"
"""
TARS = f'{HEAD}[source]\nkind = "webdataset"\ntars = {{train = ["https://a.example/x-{{08..11}}.tar"]}}\n'
ARCHIVES = f"""{HEAD}
[source]
kind = "archives"
[[source.files.val]]
url = "https://a.example/b/val.zip"
into = "images/val"
size_bytes = 9
sha256 = "{"0a" * 32}"
[[source.files.val]]
url = "https://a.example/q.json"
into = "vqa"
"""


def load(folder: Path, text: str) -> Manifest:
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    return load_manifest(str(folder / "mine.toml"))


@pytest.mark.parametrize("name", shipped_manifests())
def test_shipped(name: str) -> None:
    manifest = load_manifest(name)
    assert manifest.name == name
    assert set(manifest.rows) == set(manifest.splits)
    assert "images" in manifest.becomes
    assert manifest.columns
    if manifest.source.kind == "embedded":
        return
    assert manifest.homepage
    assert manifest.homepage.startswith("https://")
    assert "images: " in manifest.licence, "whose they are"
    files = sum(manifest.source.files.values(), ()) if isinstance(manifest.source, FilesSource) else ()
    assert all(file.url for file in files)
    # What comes without encryption is what a checksum vouches for.
    assert [f.url for f in files if f.url and f.url.startswith("http:") and not f.sha256] == []


@pytest.mark.parametrize("name", shipped_manifests())
def test_what_shipped_sets_become_is_understood_by_the_commands(name: str) -> None:
    from dialog_eval.cli import app as eval_app

    commands: dict[str, tuple[Any, str, list[str]]] = {
        "images": (app, "run", ["--model", "m", "--out", "o"]),
        "retrieval": (eval_app, "retrieval", ["--checkpoint", "c", "--out", "o"]),
        "vqa": (eval_app, "vqa", ["--checkpoint", "c", "--out", "o"]),
        "classification": (eval_app, "classify", ["--checkpoint", "c", "--out", "o"]),
    }
    manifest = load_manifest(name)
    for split in manifest.splits:
        for use, options in manifest.uses(Path("a b"), split).items():
            program, command, needed = commands[use]
            parsed: Any = typer.main.get_command(program)
            values = parsed.commands[command].make_context(command, [*needed, *shlex.split(options)]).params
            assert values["images"].startswith("a b/images")


def test_published_figures() -> None:
    """Of the dataset cards, papers and download pages; COCO's and VQA's are known from many papers."""
    rows = {name: load_manifest(name).rows for name in shipped_manifests()}
    assert rows["cc3m"] == {"train": 3_318_333, "validation": 15_840}
    assert rows["cc3m-mirror"] == {"train": 2_905_954, "validation": 13_443}
    assert rows["cc12m"] == {"train": 12_423_374}
    assert rows["mscoco"] == {"train": 82_783 + 30_504, "val": 5_000, "test": 5_000}
    assert rows["vqav1-real"] == {"train": 248_349 // 3, "val": 121_512 // 3}
    assert rows["vqav2"] == {"train": 82_783, "val": 40_504}
    assert rows["vqav1-abstract"] == {"train": 60_000 // 3, "val": 30_000 // 3}
    tars = load_manifest("cc3m-mirror").source
    assert isinstance(tars, WebdatasetSource)
    assert [len(list(tars.urls(split))) for split in tars.splits] == [576, 16]


def test_users_files(tmp_path: Path) -> None:
    mine = load(tmp_path, EMBEDDED)
    assert (mine.name, mine.licence, mine.rows) == ("mine", "CC0-1.0", {"val": 1})
    urls = load(tmp_path, URLS).source
    assert isinstance(urls, UrlSource)
    assert urls.files["train"][0].path == str(tmp_path / "list.tsv")
    tars = load(tmp_path, TARS).source
    assert isinstance(tars, WebdatasetSource)
    assert list(tars.urls("train")) == [f"https://a.example/x-{n}.tar" for n in ("08", "09", "10", "11")]
    archives = load(tmp_path, ARCHIVES)
    assert isinstance(archives.source, ArchiveSource)
    assert [(file.place, file.is_archive) for file in archives.source.files["val"]] == [
        ("images/val", True),
        ("vqa/q.json", False),
    ]
    assert archives.size_bytes == 9


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (EMBEDDED, "licence", "license", "licence: Field required; license: unknown key; did you mean 'licence'"),
        (EMBEDDED, "kind", "knd", "source: the key 'kind' is missing, got knd"),
        (EMBEDDED, "embedded", "arhives", "source: unknown kind 'arhives'; did you mean 'archives'"),
        (EMBEDDED, '{kind = "embedded"}', '"embedded"', "source: a table is needed, got 'embedded'"),
        (EMBEDDED, "val = 1", "vall = 1", "rows.vall: the source has no such split: did you mean 'val'"),
        (EMBEDDED, "val = 1", "val = 0", "rows.val: must be more than 0, got 0"),
        (EMBEDDED, "val = 1", "val = '1'", "rows.val: must be a whole number, got '1'"),
        (EMBEDDED, '"d"', '"d', "is not valid TOML"),
        (URLS, "format", "fromat", "fromat: unknown key; did you mean 'format'. Known: caption, files, format, header"),
        (URLS, '"tsv"', '"tsf"', "format: must be 'tsv', 'csv', 'parquet', 'jsonl' or 'txt', got 'tsf'"),
        (URLS, '"tsv"', '"tsv"\nheader = false', "without a header columns have numbers"),
        (URLS, '"tsv"', '"tsv"\nurl = -1', "url: columns are counted from 0 on, got -1"),
        (URLS, '"tsv"', '"jsonl"\nurl = 1', "url: keys of JSON objects have names"),
        (URLS, "path", "pth", "pth: unknown key; did you mean 'path'"),
        (URLS, 'path = "list.tsv"', "", "where is it. Give url, path or by_hand"),
        (URLS, "path =", 'url = "https://a.example"\npath =', "url and path exclude each other"),
        (URLS, "path =", "by_hand =", "name: what is got by hand needs one"),
        (TARS, "https:", "file:", "must start with http"),
        (TARS, "{08..11}.tar", "{08..11}.zip", "'x-08.zip' is no .tar"),
        (
            TARS,
            "x-{08..11}",
            "{1..2}/x",
            "https://a.example/1/x.tar and https://a.example/2/x.tar would be stored in the same place, x.tar",
        ),
        (
            TARS,
            "x-{08..11}",
            '1/X.tar", "https://a.example/x',
            "/1/X.tar and https://a.example/x.tar would be stored",
        ),
        (TARS, "x-{08..11}", 'x%3{1..1}.tar", "https://a.example/x1', "would be stored in the same place, x1.tar"),
        (TARS, "{08..11}", "{0..99999999}", "tars.train: stands for 100,000,000 tars, the most are 1,000,000"),
        (TARS, "{08..11}", "{0..9999}{0..9999}", "tars.train: stands for 100,000,000 tars, the most are 1,000,000"),
        (TARS, "{08..11}", "{0..%s}" % ("9" * 5000), "tars.train: a range of numbers of more than 18 digits"),
        (TARS, "{08..11}", "{11..08}", "tars.train: the range {11..08} is empty: give the smaller number first"),
        (
            URLS,
            'path = "list.tsv"',
            'url = "https://a.example/1/a.tsv"\n[[source.files.train]]\nurl = "https://b.example/A.tsv"',
            "train: https://a.example/1/a.tsv and https://b.example/A.tsv would be stored in the same place, A.tsv",
        ),
        (
            URLS,
            'path = "list.tsv"',
            'url = "https://a.example/link_rot.json"',
            "which this program writes itself: set its",
        ),
        (ARCHIVES, '"vqa"', '"download.json"', "which this program writes itself: set its name"),
        (ARCHIVES, "q.json", "q%00.json", "must be a path below the output folder"),
        (ARCHIVES, "sha256", "sha25", "val.1.sha25: unknown key; did you mean 'sha256'"),
        (ARCHIVES, "0a0a", "0A0A", "sha256: String should match pattern"),
        (ARCHIVES, '"images/val"', '"../val"', "into: must be a path below the output folder.*, got '../val'"),
        (ARCHIVES, '"images/val"', '"/etc"', "into: must be a path below"),
        (ARCHIVES, '"images/val"', r'"a\\b"', "into: must be a path below"),
        (ARCHIVES, '"images/val"', '".download"', "into: must be a path below"),
        (
            ARCHIVES,
            '"images/val"',
            '"vqa"',
            "val.zip and https://a.example/q.json would be stored in the same place, vqa/q.json",
        ),
        (ARCHIVES, '"vqa"', '"images/val/vqa"', "would be stored in the same place, images/val/vqa/q.json"),
        (ARCHIVES, "q.json", "..", "must be a path below"),
        (ARCHIVES, "[source]", '[becomes]\nvqa = "{dir}"\n[source]', "may hold {out} and {split}, no other braces"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, text: str, old: str, new: str, message: str) -> None:
    assert old in text
    with pytest.raises(UsageError, match=f"manifest file .*mine.toml.*{message}") as caught:
        load(tmp_path, text.replace(old, new))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape", "unknown manifest 'shape': did you mean 'shapes'"),
        ("no/such.toml", "manifest file no/such.toml: No such file"),
        ("no/such.csv", "list of URLs no/such.csv: No such file or directory"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_manifest(name)


@pytest.mark.parametrize("name", ["my list.csv", "a.tsv", "a.tsv.gz", "a.JSONL", "a.parquet"])
def test_a_bare_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), name)
    else:
        Path(name).touch()
    found = load_manifest(name)
    assert isinstance(found.source, UrlSource)
    assert (found.name, found.source.format, found.splits) == (
        name.split(".")[0],
        name.removesuffix(".gz").rpartition(".")[2].lower(),
        ("train",),
    )
    assert found.source.files["train"][0].path == str(tmp_path / name)


def test_the_list_is_readable_in_100_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dialog_gen.cli import lists as cli

    monkeypatch.setattr("dialog_gen.core.console._PIPED_TABLE_WIDTH", 100)
    cli.manifests()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "…" not in "".join(lines)
    words = set(re.split(r"[\s]+", " ".join(lines)))
    for name in shipped_manifests():
        manifest = load_manifest(name)
        assert {name, *manifest.description.split(), *manifest.licence.split()} <= words
        assert {f"{rows:,}" for rows in manifest.rows.values()} <= {word.strip(",") for word in words}


def test_the_json_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    from dialog_gen.cli import lists as cli

    cli.manifests(json_output=True)
    listed = {entry.pop("name"): entry for entry in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(shipped_manifests())
    assert listed["mscoco"]["size_bytes"] == 13_510_573_713 + 6_645_013_297 + 252_872_794
    assert listed["cc12m"]["source"]["files"]["train"][0]["url"].endswith("cc12m.tsv")


def test_a_long_range_is_expanded_when_it_is_used() -> None:
    began = time.process_time()
    source = WebdatasetSource(kind="webdataset", tars={"train": ("https://a.example/x-{000000..999999}.tar",)})
    urls = source.urls("train")
    assert [next(urls), next(urls)] == ["https://a.example/x-000000.tar", "https://a.example/x-000001.tar"]
    assert time.process_time() - began < 1


def test_many_archives_are_checked_in_a_moment(tmp_path: Path) -> None:
    """The time is linear: with a comparison of all pairs, 20,000 files took minutes."""
    files = "".join(f'{{ url = "https://a.example/{n}.jpg", into = "f{n % 7}" }},\n' for n in range(20_000))
    began = time.process_time()
    source = load(tmp_path, f'{HEAD}[source]\nkind = "archives"\nfiles.val = [\n{files}]\n').source
    assert isinstance(source, ArchiveSource)
    assert len(source.files["val"]) == 20_000
    assert time.process_time() - began < 20
