import gc
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import webdataset
from helpers.disk import full_at
from helpers.inputs import png, sha256
from helpers.progress import Heard
from helpers.rows import files_of, gates_of, make_row, rows_of, shard_of, write_shard
from PIL import Image

from dialog_gen.cli import app as cli
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.writer import open_writer
from dialog_gen.publish.export import ExportSummary, export
from dialog_gen.publish.formats import base as formats
from dialog_gen.publish.formats import parquet
from dialog_gen.publish.formats import webdataset as webdataset_format
from dialog_gen.publish.formats.base import Sample
from dialog_gen.sources.base import open_source

FORMATS = ("llava", "messages", "texts", "webdataset")


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def noise(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("L", (64, 64), random.Random(number).randbytes(64 * 64)).save(buffer, "PNG")
    return buffer.getvalue()


def with_image(number: int, data: bytes, status: str = "accepted", **columns: Any) -> dict[str, Any]:
    images = [{"bytes": data, "path": "lies.bmp"}]
    return make_row(number, status, images=images, image_sha256=sha256(data), **columns)


PAIRS = [{"user": f"Q{i}?", "assistant": f"A{i}."} for i in range(3)]
ROWS = [
    with_image(0, png(0), image_id="00000/000000000.jpg", texts=PAIRS, gates=gates_of([[], ["length"], []])),
    with_image(1, jpeg(1), image_id="../../etc/passwd", url="http://x/1", source_sha256="5" * 64, gates=gates_of([[]])),
    with_image(2, png(2), "rejected"),
    with_image(3, jpeg(3), image_id="a.b.c d", caption=None, gates=gates_of([["empty", "length"]])),
    with_image(
        4,
        png(4),
        image_id="plain_name-4",
        texts=[{"user": "<image> Ünder\n?", "assistant": "<b>&</b>"}],
        gates=gates_of([[]]),
    ),
]
ACCEPTED = [row for row in ROWS if "texts" in row]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source", ROWS)


def make_source(out: Path, rows: list[dict[str, Any]]) -> Path:
    with open_writer(str(out), {"schema_version": 3}) as store:
        write_shard(store, shard_of("s0", 3), rows[:3])
        write_shard(store, shard_of("s1", len(rows) - 3), rows[3:])
    return out


def exported(source: Path, to: str, **options: Any) -> tuple[Path, ExportSummary]:
    out = source.with_name(f"as-{to}")
    return out, export(DatasetFolder.existing(str(source)), out, to=to, **options)


def test_llava(source: Path) -> None:
    out, summary = exported(source, "llava")
    assert (summary.images, summary.pairs) == (4, 6)
    items = json.loads((out / "llava.json").read_text("utf-8"))
    assert [item["id"] for item in items] == [row["image_id"] for row in ACCEPTED]
    for item, row in zip(items, ACCEPTED, strict=True):
        assert (out / "images" / item["image"]).read_bytes() == row["images"][0]["bytes"]
        assert [turn["from"] for turn in item["conversations"]] == ["human", "gpt"] * len(row["texts"])
        said = "".join(turn["value"] for turn in item["conversations"])
        assert said.startswith("<image>\n")
        assert said.count("<image>") == 1  # a second one would be taken for a second image
    assert [turn["value"] for turn in items[0]["conversations"]][:3] == ["<image>\nQ0?", "A0.", "Q1?"]
    assert items[3]["conversations"][0]["value"] == "<image>\nimage Ünder\n?"
    assert [Path(item["image"]).suffix for item in items] == [".png", ".jpg", ".jpg", ".png"]
    assert len(files_of(out)) == 5


@pytest.mark.parametrize("to", ["messages", "texts"])
def test_parquet(source: Path, tmp_path: Path, to: str) -> None:
    out, _ = exported(source, to)
    loaded: Any = datasets.load_dataset("parquet", data_files=f"{out}/*.parquet", cache_dir=str(tmp_path / "cache"))
    rows = loaded["train"]
    assert set(rows.column_names) == {"images", to}
    assert isinstance(rows.features["images"].feature, datasets.Image)
    assert [(row["images"][0].format, row["images"][0].size) for row in rows] == [
        *(("PNG", (4, 4)), ("JPEG", (8, 8)), ("JPEG", (8, 8)), ("PNG", (4, 4)))
    ]
    if to == "texts":
        assert [row["texts"] for row in rows] == [row["texts"] for row in ACCEPTED]
    else:
        assert rows[0]["messages"] == [
            {"role": role, "content": f"{letter}{i}{mark}"}
            for i in range(3)
            for role, letter, mark in (("user", "Q", "?"), ("assistant", "A", "."))
        ]


def test_parquet_in_several_files(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 1)
    monkeypatch.setattr(parquet, "_FILE_BYTES", len(png(0)) + len(jpeg(1)) + 5)
    out, _ = exported(source, "texts")
    assert sorted(files_of(out)) == ["00000.parquet", "00001.parquet"]
    assert [row["texts"] for row in rows_of(out, ".")] == [row["texts"] for row in ACCEPTED]


def test_webdataset(source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(webdataset_format, "_SAMPLES_PER_TAR", 3)
    out, _ = exported(source, "webdataset")
    tars = sorted(out.iterdir())
    assert [tar.name for tar in tars] == ["00000.tar", "00001.tar"]
    # By this project, as a source of images,
    with caplog.at_level(logging.WARNING):
        images = [image for shard in open_source(str(out), shard_size=10) for image in shard.read()]
    assert caplog.text == ""
    for image, row in zip(images, ACCEPTED, strict=True):
        assert (image.data, image.url, image.caption, image.source_sha256) == (
            *(row["images"][0]["bytes"], row["url"], row["caption"], row["source_sha256"]),
        )
    # by webdataset,
    pipeline = webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False)
    samples = list(pipeline)
    assert [json.loads(sample["json"])["image_id"] for sample in samples] == [row["image_id"] for row in ACCEPTED]
    assert [json.loads(sample["json"])["texts"] for sample in samples] == [row["texts"] for row in ACCEPTED]
    assert [sample["txt"].decode() or None for sample in samples] == [row["caption"] for row in ACCEPTED]
    # by datasets, which takes the columns of all samples from the first ones,
    loaded: Any = datasets.load_dataset(
        "webdataset", data_files=[str(tar) for tar in tars], cache_dir=str(out.with_name("cache")), split="train"
    )
    assert [row["json"]["image_id"] for row in loaded] == [row["image_id"] for row in ACCEPTED]
    assert [row["png"].format for row in loaded] == ["PNG", "JPEG", "JPEG", "PNG"]
    # and by tar: nothing leaves the folder it is unpacked to.
    for tar in tars:
        with tarfile.open(tar) as opened:
            assert all(member.name.count(".") == 1 and "/" not in member.name for member in opened)


@pytest.mark.parametrize("to", FORMATS)
def test_the_same_dataset_gives_the_same_bytes(source: Path, to: str) -> None:
    out, _ = exported(source, to)
    first = files_of(out)
    out.rename(out.with_name("first"))
    assert files_of(exported(source, to)[0]) == first


@pytest.mark.parametrize("to", FORMATS)
def test_kept_only(source: Path, to: str) -> None:
    _, summary = exported(source, to, kept_only=True)
    assert (summary.images, summary.pairs) == (3, 4)
    assert (summary.marked_pairs_left_out, summary.images_without_kept_pairs) == (2, 1)
    assert "left out: 2 marked pairs, 1 image without a pair that is kept" in str(summary)


def test_kept_pairs_are_those_without_a_mark(source: Path) -> None:
    out, _ = exported(source, "texts", kept_only=True)
    assert [row["texts"] for row in rows_of(out, ".")] == [
        [PAIRS[0], PAIRS[2]],
        ACCEPTED[1]["texts"],
        ACCEPTED[3]["texts"],
    ]


@pytest.mark.parametrize("to", FORMATS)
def test_limit(source: Path, to: str) -> None:
    assert exported(source, to, limit=2)[1].images == 2


def test_rows_without_their_image(tmp_path: Path) -> None:
    rows = [{**row, "images": None} if number in (0, 3) else row for number, row in enumerate(ROWS)]
    _, summary = exported(make_source(tmp_path / "some", rows), "llava")
    assert (summary.images, summary.images_without_bytes) == (2, 2)
    none = make_source(tmp_path / "none", [{**row, "images": None} for row in ROWS])
    with pytest.raises(UsageError, match="holds no images, only their URLs: `dialog-gen rehydrate`"):
        export(DatasetFolder(str(none)), tmp_path / "out", to="llava")
    assert not (tmp_path / "out").exists()


def test_nothing_to_export(tmp_path: Path) -> None:
    marked = make_source(tmp_path / "marked", [with_image(i, png(i), gates=gates_of([["length"]])) for i in range(4)])
    with pytest.raises(UsageError, match="every pair is marked by a gate"):
        exported(marked, "texts", kept_only=True)
    rejected = make_source(tmp_path / "rejected", [with_image(i, png(i), "rejected") for i in range(4)])
    with pytest.raises(UsageError, match="has no accepted dialogue"):
        exported(rejected, "texts")


def test_what_is_no_image(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", [with_image(i, b"no image") for i in range(4)])
    with pytest.raises(UsageError, match="image 'image 0' cannot be exported, it is no image"):
        exported(source, "llava")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_pairs_that_no_gate_saw_are_not_known_to_be_kept(source: Path) -> None:
    grown = make_source(source.with_name("grown"), [*ROWS, with_image(9, png(9))])
    exported(grown, "texts")
    with pytest.raises(
        UsageError, match=r"no gates were applied to shard s1, .*: run `dialog-gen gate .*do without --kept-only"
    ):
        exported(grown.rename(source.with_name("again")), "llava", kept_only=True)


@pytest.mark.parametrize("to", ["llava", "webdataset"])
def test_photos_of_phones_are_jpegs(tmp_path: Path, to: str) -> None:
    """MPO: a JPEG with another one behind it."""
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    out, _ = exported(make_source(tmp_path / "source", [with_image(i, buffer.getvalue()) for i in range(3)]), to)
    images = out if to == "webdataset" else out / "images"
    read = [image.data for shard in open_source(str(images), shard_size=10) for image in shard.read()]
    assert read == [buffer.getvalue()] * 3


# Whole or not at all


def test_it_writes_over_nothing(source: Path, tmp_path: Path) -> None:
    (tmp_path / "as-llava").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        exported(source, "llava")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], to: str, share: float
) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 7)
    source = make_source(tmp_path / "source", [with_image(i, noise(i)) for i in range(40)])
    out, _ = exported(source, to)
    size = max(path.stat().st_size for path in out.rglob("*") if path.is_file())
    shutil.rmtree(out)
    with full_at(int(share * size)), pytest.raises(DialogGenError, match=r"cannot write .*; nothing was written"):
        exported(source, to)
    gc.collect()
    assert capfd.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_a_killed_export_left_is_gone(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".as-texts.part").mkdir()
    (tmp_path / ".as-texts.part" / "00007.parquet").touch()
    out, _ = exported(source, "texts")
    assert sorted(files_of(out)) == ["00000.parquet"]
    assert not (tmp_path / ".as-texts.part").exists()


def test_a_damaged_source(source: Path, tmp_path: Path) -> None:
    (source / "shards" / "s1.json").write_text("{")
    with pytest.raises(UsageError, match=r"shards/s1\.json is damaged"):
        exported(source, "texts")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


LAVA = "error: --to lava: unknown export format; did you mean 'llava'? Known: llava, messages, texts, webdataset."
ELSEWHERE = "error: --out s3://bucket/out is not on this machine"


@pytest.mark.parametrize(("to", "out", "message"), [("lava", "out", LAVA), ("llava", "s3://bucket/out", ELSEWHERE)])
def test_wrong_flags(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], to: str, out: str, message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["dialog-gen", "export", str(source), "--to", to, "--out", out])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith(message)


# Names


def name(image_id: str) -> str:
    row = dict.fromkeys(("image_sha256", "source_sha256", "url", "caption"))
    return Sample(image_id=image_id, images=(b"",), pairs=[], **row).name  # type: ignore[arg-type]


@pytest.mark.parametrize("image_id", ["000000012", "plain_name-4", "a"])
def test_a_plain_id_is_its_own_name(image_id: str) -> None:
    assert name(image_id) == image_id


def test_names_are_safe_and_differ() -> None:
    hashed = name("x!")
    ids = [
        "x!",
        "x?",
        "X!",
        hashed,
        "",
        ".",
        "..",
        "a/b",
        "a_b",
        "a.b",
        "A_b",
        "ä",
        "\0",
        "-",
        "y" * 500,
        "y" * 501,
        "con",
    ]
    names = [name(image_id) for image_id in ids]
    assert len({found.lower() for found in names}) == len(ids)
    assert all(0 < len(found) < 100 and set(found) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for found in names)


# Formats of other packages

PLUGIN = """
from pathlib import Path
from dialog_gen.publish.formats.base import FORMATS, Sample, SampleWriter

@FORMATS.register("questions")
class QuestionsWriter(SampleWriter):
    description = "OUT/questions.txt, one question per line"

    def __init__(self, out: Path) -> None:
        self._file = (out / "questions.txt").open("w", encoding="utf-8")

    def add(self, sample: Sample) -> None:
        for pair in sample.pairs:
            print(pair["user"].replace("\\n", " "), file=self._file)

    def close(self) -> None:
        self._file.close()
"""


@pytest.fixture
def other_package(tmp_path: Path) -> Path:
    """A folder with another package that is installed: one format in one file, and one that cannot be imported."""
    site = tmp_path / "site"
    info = site / "more_formats-1.dist-info"
    info.mkdir(parents=True)
    (site / "questions_format.py").write_text(PLUGIN)
    (site / "broken_format.py").write_text("import no_such_module_anywhere\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-formats\nVersion: 1\n")
    points = "[dialog_gen.formats]\nquestions = questions_format\nbroken = broken_format\n"
    (info / "entry_points.txt").write_text(points)
    return site


def export_command(site: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`dialog-gen export` in a process of its own, with `site` beside what is installed."""
    command = [sys.executable, "-m", "dialog_gen.cli.app", "export", *map(str, arguments)]
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True)


def test_a_format_of_another_package(source: Path, tmp_path: Path, other_package: Path) -> None:
    done = export_command(other_package, source, "--to", "questions", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("out: 4 images, 6 question-answer pairs as questions\n")
    wanted = [pair["user"].replace("\n", " ") for row in ACCEPTED for pair in row["texts"]]
    assert (tmp_path / "out" / "questions.txt").read_text("utf-8").splitlines() == wanted
    shown = " ".join(export_command(other_package, "--help").stdout.split())
    assert "llava: OUT/llava.json, a training file of LLaVA" in shown
    assert "broken; questions: OUT/questions.txt, one question per line." in shown


def test_a_format_whose_package_is_broken(source: Path, tmp_path: Path, other_package: Path) -> None:
    done = export_command(other_package, source, "--to", "broken", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: export format 'broken' of the package more-formats cannot be imported")
    assert "no_such_module_anywhere" in done.stderr
    assert "Known: llava, messages, texts, webdataset, questions." in done.stderr
    assert done.stderr.count("\n") == 1


def test_every_format_says_what_it_writes() -> None:
    known = formats.FORMATS.all()
    assert sorted(known) == sorted(FORMATS)
    assert all(writer.description.startswith("OUT/") for writer in known.values())


def test_a_location_or_an_open_folder(source: Path, tmp_path: Path) -> None:
    heard = Heard()
    summary = export(str(source), str(tmp_path / "out"), to="texts", on_progress=heard)
    assert heard.ends() == {"exporting images": (4, 4)}
    assert export(DatasetFolder(str(source)), tmp_path / "again", to="texts", limit=9).images == summary.images
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")
    with pytest.raises(UsageError, match="--limit 0 is too small: give at least 1"):
        export(source, tmp_path / "new", to="texts", limit=0)
    with pytest.raises(UsageError, match="nowhere does not exist"):
        export(tmp_path / "nowhere", tmp_path / "new", to="texts")
