"""`--images-per-sample all`: the images of a sample go into one dialogue, and stay together in all that reads it."""

import base64
import io
import json
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.architectures import random_model
from helpers.chat_server import ChatServer, answer_for, is_contact
from helpers.cli import Cli
from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, write_files, write_tar
from helpers.rows import files_of, rows_of, sign
from helpers.runs import CONFIG, run_shards
from PIL import Image

import dialog_gen
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.record import IMAGE_TYPE
from dialog_gen.inspect.deep import verify
from dialog_gen.publish.compact import compact
from dialog_gen.publish.export import export
from dialog_gen.publish.rehydrate import rehydrate
from dialog_gen.sources.base import InputShard, open_source

TAR = {
    "a.txt": b"a caption",
    "a.second.jpg": png(2),
    "a.jpg": png(1),
    "a.third.png": png(3),
    "a.json": b'{"url": "http://x/1.jpg", "sha256": "5"}',
    "b.jpg": png(4),
    "b.json": b'{"url": "http://x/4.jpg", "sha256": "6"}',
    "c.png": png(5),
    "c.mask.png": png(6),
    "trip 2.0.jpg": png(7),
    "trip 2.1.jpg": png(8),
}
SAMPLES = {
    "t/a": [("a.jpg", png(1)), ("a.second.jpg", png(2)), ("a.third.png", png(3))],
    "t/b": [("b.jpg", png(4))],
    "t/c": [("c.png", png(5)), ("c.mask.png", png(6))],
    "t/trip 2.0": [("trip 2.0.jpg", png(7))],
    "t/trip 2.1": [("trip 2.1.jpg", png(8))],
}


CUT = png(2, (64, 64))[:-40]


def hash_of(images: list[bytes]) -> str:
    """What `image_sha256` is said to be."""
    hashes = [sha256(data).hexdigest() for data in images]
    return hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest()


HASHES = {image_id: hash_of([data for _, data in images]) for image_id, images in SAMPLES.items()}


def shards(spec: object, *, all_images: bool = True, size: int = 100) -> list[InputShard]:
    return list(open_source(str(spec), shard_size=size, all_images=all_images))


def images_in(spec: object, *, all_images: bool = True) -> dict[str, list[tuple[str | None, bytes]]]:
    found = [image for shard in shards(spec, all_images=all_images, size=2) for image in shard.read()]
    return {source.image_id: [(image.path, image.data) for image in source.images] for source in found}


def unused_in(spec: object, *, all_images: bool) -> dict[str, int]:
    return dict(shards(spec, all_images=all_images)[0].unused)


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    write_tar(tmp_path / "in" / "t.tar", TAR)
    return tmp_path / "in"


def run(source: Path, out: Path, engine: ScriptedEngine, **others: Any) -> None:
    run_shards(iter(shards(source, size=2)), out, engine, config={**CONFIG, "images_per_sample": "all"}, **others)


# Sources


def test_the_images_of_a_key_in_a_tar(tars: Path) -> None:
    assert images_in(tars) == SAMPLES
    assert images_in(tars, all_images=False) == {image_id: images[:1] for image_id, images in SAMPLES.items()}
    assert unused_in(tars, all_images=True) == {}
    assert unused_in(tars, all_images=False) == {"second_image": 3}


def test_a_changed_second_image_is_another_input(tars: Path, tmp_path: Path) -> None:
    before = {all_images: shards(tars, all_images=all_images)[0].fingerprint for all_images in (True, False)}
    write_tar(tars / "t.tar", {**TAR, "a.second.jpg": png(2) + b"."})
    assert shards(tars)[0].fingerprint != before[True]
    assert shards(tars, all_images=False)[0].fingerprint == before[False] != before[True]


def test_the_images_of_a_list_in_parquet(tmp_path: Path) -> None:
    write_files(tmp_path / "in", {"x/9.png": png(9)})
    lists = [
        [{"bytes": png(1), "path": "p/1.png"}, {"bytes": png(2), "path": None}],
        [{"bytes": png(3), "path": None}, None, {"bytes": None, "path": None}],
        [None, {"bytes": png(4), "path": None}, {"bytes": None, "path": "x/9.png"}],
        [],
        None,
        [None],
    ]
    columns = {"id": list("abcdef"), "images": pa.array(lists, pa.list_(IMAGE_TYPE)), "png": [png(8)] * 6}
    pq.write_table(pa.table(columns), tmp_path / "in" / "t.parquet")
    assert images_in(tmp_path / "in" / "t.parquet") == {
        "a": [("1.png", png(1)), (None, png(2))],
        "b": [(None, png(3))],
        "c": [(None, png(4)), ("9.png", png(9))],
        **{key: [(None, b"")] for key in "def"},
    }
    # Another column of images is not used in any case.
    assert unused_in(tmp_path / "in" / "t.parquet", all_images=True) == {"second_image": 6}
    assert unused_in(tmp_path / "in" / "t.parquet", all_images=False)["second_image"] == 6 + 5


def test_files_are_samples_of_one_image(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.jpg": png(1), "a.second.jpg": png(2)})
    assert images_in(tmp_path) == images_in(tmp_path, all_images=False)
    assert len(images_in(tmp_path)) == 2


# A run


def test_rows_have_all_images(tars: Path, tmp_path: Path) -> None:
    engine = ScriptedEngine()
    run(tars, tmp_path / "out", engine)
    rows = {row["image_id"]: row for row in rows_of(tmp_path / "out")}
    found = {image_id: [(image["path"], image["bytes"]) for image in row["images"]] for image_id, row in rows.items()}
    assert found == SAMPLES
    assert {image_id: row["image_sha256"] for image_id, row in rows.items()} == HASHES
    assert {asked.image_sha256 for asked in engine.asked} == set(HASHES.values())
    assert len(engine.sizes) == sum(map(len, SAMPLES.values()))
    # The URL is that of one image; the caption is that of the sample.
    assert (rows["t/a"]["url"], rows["t/a"]["source_sha256"], rows["t/a"]["caption"]) == (None, None, "a caption")
    assert (rows["t/b"]["url"], rows["t/b"]["source_sha256"]) == ("http://x/4.jpg", "6")
    again = ScriptedEngine()
    run(tars, tmp_path / "out", again)
    assert again.starts == 0


def test_the_engine_sees_the_images_in_order(tars: Path, tmp_path: Path) -> None:
    seen = dict[str, list[bytes]]()

    class Engine(ScriptedEngine):
        async def answer(self, request: Any) -> Any:
            assert len(request.images) == len(request.encoded)
            for image, data in zip(request.images, request.encoded, strict=True):
                with Image.open(io.BytesIO(data)) as stored:
                    assert image.tobytes() == stored.convert("RGB").tobytes()
            seen[request.image_sha256] = list(request.encoded)
            return await super().answer(request)

    run(tars, tmp_path / "out", Engine())
    assert seen == {HASHES[image_id]: [data for _, data in images] for image_id, images in SAMPLES.items()}


def test_one_unreadable_image_makes_the_sample_unreadable(tmp_path: Path) -> None:
    members = {"a.jpg": png(1), "a.2.jpg": CUT, "b.jpg": b"", "b.2.jpg": png(3), "c.jpg": png(4)}
    write_tar(tmp_path / "in" / "t.tar", members)
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    assert [row["image_id"] for row in rows_of(tmp_path / "out")] == ["t/c"]
    rejects = {row["image_id"]: row for row in rows_of(tmp_path / "out", "rejects")}
    assert {row["reason"] for row in rejects.values()} == {"truncated", "empty_file"}
    assert (rejects["t/a"]["reason"], rejects["t/a"]["detail"][:9]) == ("truncated", "image 2: ")
    assert rejects["t/b"]["detail"] == "image 1: 0 bytes"
    assert [len(row["images"]) for row in rejects.values()] == [2, 2]
    assert verify(tmp_path / "out", deep=True).problems == []


@pytest.mark.parametrize(
    ("before", "detail"), [((), "no bytes, only the pa"), ((1,), "image 2: no bytes, only the pa")]
)
def test_a_missing_image_makes_the_sample_unreadable(tmp_path: Path, before: tuple[int, ...], detail: str) -> None:
    images = [[*({"bytes": png(k), "path": None} for k in before), {"bytes": None, "path": "nowhere.png"}]]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"images": pa.array(images, pa.list_(IMAGE_TYPE))}), tmp_path / "in" / "t.parquet")
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    (row,) = rows_of(tmp_path / "out", "rejects")
    assert (row["reason"], row["detail"][: len(detail)]) == ("missing_file", detail)
    assert verify(tmp_path / "out", deep=True).problems == []


def test_a_model_that_does_not_see_every_image(tars: Path, tmp_path: Path) -> None:
    run(tars, tmp_path / "out", ScriptedEngine(blind={HASHES["t/a"]: EVERY}))
    (row,) = rows_of(tmp_path / "out", "rejects")
    assert (row["image_id"], row["reason"]) == ("t/a", "image_not_seen")
    assert "fewer image tokens than images" in row["detail"]


# What reads a dataset


@pytest.fixture
def dataset(tars: Path, tmp_path: Path) -> Path:
    run(tars, tmp_path / "made", ScriptedEngine())
    return tmp_path / "made"


def edited(dataset: Path, change: Any) -> None:
    """Changes the images of the row t/a, and makes the manifest agree."""
    for file in (dataset / "data").glob("*.parquet"):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for row in rows:
            if row["image_id"] == "t/a":
                change(row["images"])
        pq.write_table(pa.Table.from_pylist(rows, table.schema), file, write_page_checksum=True)
        sign(dataset, file.stem)


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images.reverse(),
        lambda images: images.pop(),
        lambda images: images[1].update(bytes=png(9)),
        lambda images: images[1].update(bytes=None),
        lambda images: images.append(images[0]),
    ],
)
def test_verify_finds_a_changed_image(dataset: Path, change: Any) -> None:
    assert verify(dataset, deep=True).problems == []
    edited(dataset, change)
    assert ["image_sha256 is not that of the image" in problem for problem in verify(dataset).problems] == [True]


def test_a_deep_verification_decodes_every_image(tmp_path: Path) -> None:
    """As of a dataset that was written when the image could be decoded."""
    write_tar(tmp_path / "in" / "t.tar", {"a.jpg": png(1), "a.2.jpg": CUT})
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    (file,) = (tmp_path / "out" / "rejects").glob("*.parquet")
    table = pq.read_table(file)
    changed = [{**row, "reason": "decode_error"} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(changed, table.schema), file, write_page_checksum=True)
    sign(tmp_path / "out", file.stem)
    problems = verify(tmp_path / "out", deep=True).problems
    assert any("its image cannot be decoded (truncated); recorded: decode_error" in problem for problem in problems)


def test_exports_have_all_images(dataset: Path, tmp_path: Path) -> None:
    export(dataset, tmp_path / "tars", to="webdataset")
    again = images_in(tmp_path / "tars")
    assert [[data for _, data in images] for images in again.values()] == [
        [data for _, data in images] for images in SAMPLES.values()
    ]
    export(dataset, tmp_path / "llava", to="llava")
    items = {item["id"]: item for item in json.loads((tmp_path / "llava" / "llava.json").read_text())}
    assert isinstance(items["t/b"]["image"], str)
    for image_id, images in SAMPLES.items():
        paths = items[image_id]["image"]
        paths = [paths] if isinstance(paths, str) else paths
        assert [(tmp_path / "llava" / "images" / path).read_bytes() for path in paths] == [data for _, data in images]
        first, *others = (turn["value"] for turn in items[image_id]["conversations"])
        assert first.startswith("<image>\n" * len(images))
        assert first.count("<image>") == len(images)
        assert not any("<image>" in turn for turn in others)
    for to in ("messages", "texts"):
        export(dataset, tmp_path / to, to=to)
        rows = pq.read_table(tmp_path / to / "00000.parquet").to_pylist()
        assert [[image["bytes"] for image in row["images"]] for row in rows] == [
            [data for _, data in images] for images in SAMPLES.values()
        ]
        assert len({image["path"] for row in rows for image in row["images"]}) == 8


def test_names_of_further_images_are_no_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "t.tar", {"a.jpg": png(1), "a.2.png": png(2), "a-2.png": png(3), "a_2.png": png(4)})
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    export(tmp_path / "out", tmp_path / "tars", to="webdataset")
    with tarfile.open(tmp_path / "tars" / "00000.tar") as tar:
        names = [name for name in tar.getnames() if name.endswith(".png")]
    assert len(set(names)) == 4


def test_the_report_shows_all_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "in" / "t.tar", {"a.jpg": png(40), "a.2.jpg": png(120), "a.3.jpg": png(200), "b.jpg": png(9)})
    run(tmp_path / "in", tmp_path / "out", ScriptedEngine())
    dialog_gen.report(tmp_path / "out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    content = json.loads(page.split('<script type="application/json"', 1)[1].split(">", 1)[1].split("</script>", 1)[0])
    shown = {row["sides"][0]["id"]: row["images"] for row in content["gallery"]["rows"]}
    assert {image_id: len(images) for image_id, images in shown.items()} == {"t/a": 3, "t/b": 1}
    for image, red in zip(shown["t/a"], (40, 120, 200), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(image.split(",")[1]))) as thumbnail:
            pixel: Any = thumbnail.convert("RGB").getpixel((1, 1))
            assert abs(pixel[0] - red) < 10


def test_images_that_were_left_out_cannot_be_fetched_again(dataset: Path, tmp_path: Path) -> None:
    compact(dataset, tmp_path / "small", without_images=True)
    found = rehydrate(tmp_path / "small", tmp_path / "back", threads=1)
    assert found.outcomes["no_url"] == 4
    assert found.outcomes["present"] == 0
    compact(dataset, tmp_path / "whole")
    rows = {row["image_id"]: [image["bytes"] for image in row["images"]] for row in rows_of(tmp_path / "whole")}
    assert rows == {image_id: [data for _, data in images] for image_id, images in SAMPLES.items()}
    assert verify(tmp_path / "whole", deep=True).problems == []


# The command


def urls(body: dict[str, Any]) -> list[bytes]:
    parts = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    assert body["messages"][0]["content"][: len(parts)] == parts
    return [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in parts]


def test_a_server_gets_all_images(tars: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    given = ("run", "--model", "talker", "--images", str(tars), "--out", str(tmp_path / "out"), "--engine", "openai")
    with ChatServer() as server:
        found = dialog_gen_cli(*given, "--endpoint", server.url, "--images-per-sample", "all")
        assert found.code == 0, found.err
        shown = {tuple(urls(body)) for body in server.asked if not is_contact(body)}
        assert shown == {tuple(data for _, data in images) for images in SAMPLES.values()}
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["images_per_sample"] == "all"
        # Another choice is another dataset; the default is not part of a configuration.
        found = dialog_gen_cli(*given, "--endpoint", server.url)
        assert (found.code, "images_per_sample" in found.err) == (2, True)
        first = (*given[:5], "--images", str(tars), "--out", str(tmp_path / "first"), *given[7:])
        assert dialog_gen_cli(*first, "--endpoint", server.url, "--images-per-sample", "first").code == 0
        assert "images_per_sample" not in json.loads((tmp_path / "first" / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "command.json").read_text())["arguments"]["images_per_sample"] == "all"


def test_a_lost_shard_is_made_again_with_all_images(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ChatServer() as server:
        dialog_gen.generate(
            model="talker", images=tars, out=out, engine="openai", endpoint=server.url, images_per_sample="all",
            shard_size=2,
        )  # fmt: skip
        rows, before = rows_of(out), set(files_of(out))
        next(iter((out / "data").glob("*.parquet"))).unlink()
        dialog_gen.repair(out)
    assert rows_of(out) == rows
    assert before <= set(files_of(out))


def test_batches_have_all_images(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "batch"
    written = dialog_gen.batch_write(model="talker", images=tars, out=out, images_per_sample="all")
    requests = [json.loads(line) for file in written.files for line in Path(file).read_text().splitlines()]
    assert [tuple(urls(request["body"])) for request in requests] == [
        tuple(data for _, data in images) for images in SAMPLES.values()
    ]
    lines = ""
    for request in requests:
        message = {"role": "assistant", "content": answer_for(request["body"])}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        line = {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}
        lines += json.dumps(line) + "\n"
    (tmp_path / "results.jsonl").write_text(lines)
    read = dialog_gen.batch_read(out, [tmp_path / "results.jsonl"])
    assert (read.answers, read.images, read.images_left) == (5, 5, 0)
    assert {row["image_id"]: row["image_sha256"] for row in rows_of(out)} == HASHES


def test_models_and_values_are_refused_before_the_start(tars: Path, tmp_path: Path, dialog_gen_cli: Cli) -> None:
    given = ("run", "--model", "shapes-llava", "--images", str(tars), "--out", str(tmp_path / "out"))
    found = dialog_gen_cli(*given, "--images-per-sample", "all")
    assert found.code == 2
    assert "shapes-llava (llava) was made for one image in a prompt" in found.err
    assert "Traceback" not in found.err
    found = dialog_gen_cli(*given, "--images-per-sample", "two")
    assert (found.code, "images-per-sample" in found.err) == (2, True)
    with pytest.raises(UsageError, match="--images-per-sample each: "):
        dialog_gen.generate(
            model="shapes-llava", images=tars, out=tmp_path / "out", images_per_sample="each"  # type: ignore[arg-type]
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_model_of_several_images_makes_dialogues(tars: Path, tmp_path: Path) -> None:
    model = random_model("qwen2.5-vl", tmp_path / "qwen")
    given: dict[str, Any] = {
        "model": str(model), "images": tars, "out": tmp_path / "out", "protocol": "blip2-two-turn",
        "engine": "transformers", "temperature": 1.5, "max_tokens": 16, "attempts": 20, "dtype": "float32",
        "images_per_sample": "all", "limit": 3,
    }  # fmt: skip
    plan = dialog_gen.generate(**given, dry_run=True).text
    assert plan.count("<|image_pad|>") == 2 * (3 + 1 + 2)  # two turns of each of three samples
    assert f"t/a ({len(png(1))} bytes, {len(png(2))} bytes, {len(png(3))} bytes)" in plan
    result = dialog_gen.generate(**given)
    assert (result.images, result.accepted) == (3, 3)
    assert {row["image_id"]: row["image_sha256"] for row in rows_of(tmp_path / "out")} == {
        image_id: HASHES[image_id] for image_id in ("t/a", "t/b", "t/c")
    }
    # vLLM prepares the images of this one otherwise.
    onevision = str(random_model("llava-onevision", tmp_path / "onevision"))
    with pytest.raises(UsageError, match=r"--images-per-sample all: vLLM cuts .* tiles.*: use --engine transformers"):
        dialog_gen.generate(**{**given, "model": onevision, "engine": "vllm", "out": tmp_path / "other"})
