"""Other programs open what this one writes: the dataset folder, the larger shards of `compact`, and each export."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import webdataset
from helpers.inputs import png, sha256
from helpers.rows import gates_of, make_row, shard_of, write_shard
from PIL import Image

from dialog_gen.dataset.writer import open_writer
from dialog_gen.publish.card import card
from dialog_gen.publish.compact import compact
from dialog_gen.publish.export import export

pytestmark = pytest.mark.slow

Texts = list[tuple[str, list[tuple[str, str]]]]
"""(id, pairs) of each image."""
SHARDS, ROWS = 3, 5
WORDS = ('He said "no", then left.', "Zeile 1\nZeile 2\t|", "木のテーブル 🪑", "a, b; c\\n 'd'", "  spaces  ")


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (number, 40, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def pairs_of(number: int) -> list[dict[str, str]]:
    return [
        {"user": f"{WORDS[(number + turn) % len(WORDS)]}?", "assistant": WORDS[(number * 3 + turn) % len(WORDS)]}
        for turn in range(1 + number % 3)
    ]


def rows_of_shard(shard: int) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    for number in range(shard * ROWS, (shard + 1) * ROWS):
        if number % 7 == 3:
            rows.append(make_row(number, "rejected"))
            continue
        data = jpeg(number) if number % 2 else png(number)
        texts = pairs_of(number)
        rows.append(
            make_row(
                number,
                images=[{"bytes": data, "path": f"{number}.img"}],
                image_sha256=sha256(data),
                caption=None if number % 4 == 0 else f"caption {number}",
                texts=texts,
                # The first shard has no gates, as if a run had been interrupted before them.
                gates=gates_of([[] for _ in texts], length=[1.5] * len(texts)) if shard else None,
            )
        )
    return rows


ALL = [row for shard in range(SHARDS) for row in rows_of_shard(shard)]
WANTED: Texts = [
    (row["image_id"], [(pair["user"], pair["assistant"]) for pair in row["texts"]]) for row in ALL if "texts" in row
]
REJECTED = [row["image_id"] for row in ALL if "texts" not in row]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`out`, `compacted`, `with-card`, and `to-FORMAT` of each export."""
    root = tmp_path_factory.mktemp("made")
    with open_writer(str(root / "out"), {"schema_version": 3}) as store:
        for shard in range(SHARDS):
            write_shard(store, shard_of(f"s{shard}", ROWS), rows_of_shard(shard))
    compact(root / "out", root / "compacted")
    compact(root / "out", root / "with-card")
    (root / "with-card" / "README.md").write_text(card(root / "with-card", "me/set"))
    for to in ("llava", "messages", "texts", "webdataset"):
        export(root / "out", root / f"to-{to}", to=to)
    return root


def with_datasets(files: str, tmp_path: Path, column: str) -> list[Any]:
    loaded: Any = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    return [row[column] for row in loaded]


READERS: dict[str, Callable[[str, Path, str], list[Any]]] = {
    "datasets": with_datasets,
    "pandas": lambda files, _, column: [
        row for file in sorted(Path(files).parent.glob("*.parquet")) for row in pd.read_parquet(file)[column]
    ],
    "polars": lambda files, _, column: pl.read_parquet(files)[column].to_list(),
    "duckdb": lambda files, _, column: [
        row for (row,) in duckdb.execute(f"SELECT {column} FROM read_parquet('{files}')").fetchall()
    ],
}


def of_duckdb(query: str) -> list[dict[str, Any]]:
    cursor = duckdb.execute(query)
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def as_pairs(texts: Any) -> list[tuple[str, str]]:
    return [(pair["user"], pair["assistant"]) for pair in texts]


def of_turns(turns: Any, speaker: str, text: str, speakers: tuple[str, str]) -> list[tuple[str, str]]:
    """The pairs of a conversation, whose turns take turns."""
    assert [turn[speaker] for turn in turns] == list(speakers) * (len(turns) // 2)
    return [(question[text], answer[text]) for question, answer in zip(turns[::2], turns[1::2], strict=True)]


def test_an_unreadable_image_loads_without_decoding(tmp_path: Path) -> None:
    """As docs/reference/record.md says."""
    row = make_row(0, "unreadable") | {"images": [{"bytes": b"no image", "path": "a.jpg"}]}
    with open_writer(str(tmp_path / "out"), {"schema_version": 3}) as store:
        write_shard(store, shard_of("s0", 1), [row])
    out, cache = str(tmp_path / "out"), str(tmp_path / "cache")
    rejects: Any = datasets.load_dataset(out, "rejects", split="train", cache_dir=cache)
    with pytest.raises(OSError, match="cannot identify image file"):
        rejects[0]
    rejects = rejects.cast_column("images", datasets.List(datasets.Image(decode=False)))
    assert rejects[0]["images"] == row["images"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["out", "compacted"])
def test_the_folders(made: Path, tmp_path: Path, name: str, reader: str) -> None:
    read = READERS[reader]
    files = f"{made}/{name}/data/*.parquet"
    assert [
        *zip(read(files, tmp_path, "image_id"), map(as_pairs, read(files, tmp_path, "texts")), strict=True)
    ] == WANTED
    rejects = f"{made}/{name}/rejects/*.parquet"
    assert read(rejects, tmp_path, "image_id") == REJECTED


@pytest.mark.parametrize("name", ["out", "compacted", "with-card"])
def test_the_folders_as_they_are(made: Path, tmp_path: Path, name: str) -> None:
    """As the Hub's viewer opens them: by what their README.md says."""
    options: Any = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    rows: Any = datasets.load_dataset(str(made / name), **options)
    assert [(row["image_id"], as_pairs(row["texts"])) for row in rows] == WANTED
    assert {image.size for row in rows for image in row["images"]} == {(9, 7), Image.open(io.BytesIO(png(0))).size}
    rejects: Any = datasets.load_dataset(str(made / name), "rejects", **options)
    assert rejects["image_id"] == REJECTED
    # No column says nothing where there is a card; the record is whole where there is none.
    null = [column for column in rows.column_names if column != "images" and set(map(str, rows[column])) == {"None"}]
    assert null == ([] if name == "with-card" else ["url", "source_sha256", "answer_logprobs"])


@pytest.mark.parametrize("reader", READERS)
def test_texts(made: Path, tmp_path: Path, reader: str) -> None:
    found = READERS[reader](f"{made}/to-texts/*.parquet", tmp_path, "texts")
    assert list(map(as_pairs, found)) == [pairs for _, pairs in WANTED]


@pytest.mark.parametrize("reader", READERS)
def test_messages(made: Path, tmp_path: Path, reader: str) -> None:
    found = READERS[reader](f"{made}/to-messages/*.parquet", tmp_path, "messages")
    pairs = [of_turns(turns, "role", "content", ("user", "assistant")) for turns in found]
    assert pairs == [pairs for _, pairs in WANTED]


@pytest.mark.parametrize("to", ["texts", "messages"])
def test_exports_of_parquet_as_folders(made: Path, tmp_path: Path, to: str) -> None:
    rows: Any = datasets.load_dataset(str(made / f"to-{to}"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(WANTED)
    assert all(image.size[0] > 0 for row in rows for image in row["images"])


@pytest.mark.parametrize("reader", READERS)
def test_llava(made: Path, tmp_path: Path, reader: str) -> None:
    file = str(made / "to-llava" / "llava.json")
    readers: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "datasets": lambda: list(
            datasets.load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))  # type: ignore[arg-type]
        ),
        "pandas": lambda: pd.read_json(file, dtype={"id": str}).to_dict("records"),
        "polars": lambda: pl.read_json(file).to_dicts(),
        "duckdb": lambda: of_duckdb(f"SELECT * FROM read_json('{file}')"),
    }
    rows = readers[reader]()
    found = [(row["id"], of_turns(row["conversations"], "from", "value", ("human", "gpt"))) for row in rows]
    shown = [(name, [(q.removeprefix("<image>\n"), a) for q, a in pairs]) for name, pairs in found]
    assert shown == WANTED
    assert all((made / "to-llava" / "images" / row["image"]).is_file() for row in rows)


@pytest.mark.parametrize("reader", ["datasets", "webdataset"])
def test_webdataset(made: Path, tmp_path: Path, reader: str) -> None:
    tars = [str(tar) for tar in sorted((made / "to-webdataset").glob("*.tar"))]
    rows: Any
    if reader == "datasets":
        rows = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "cache"))
        found = [row["json"] for row in rows]
        captions = [row["txt"] for row in rows]
    else:
        rows = list(webdataset.WebDataset(tars, shardshuffle=False))
        found = [json.loads(row["json"]) for row in rows]
        captions = [row["txt"].decode() for row in rows]
    assert [(row["image_id"], as_pairs(row["texts"])) for row in found] == WANTED
    assert captions == [row["caption"] or "" for row in ALL if "texts" in row]


@pytest.mark.parametrize("way", ["run", "compact", "messages"])
def test_row_groups_are_small_and_have_a_page_index(tmp_path: Path, way: str) -> None:
    """No more than 128 MiB in a group, for a viewer that reads at most 300 MB; readers find pages without scanning."""
    padding = random.Random(0).randbytes(1 << 20)
    images = [jpeg(number) + padding for number in range(99)]
    rows = [make_row(n, images=[{"bytes": image, "path": "i"}], image_sha256="") for n, image in enumerate(images)]
    with open_writer(str(tmp_path / "run"), {"schema_version": 3}) as store:
        write_shard(store, shard_of("s", len(rows)), rows)
    if way == "compact":
        compact(tmp_path / "run", tmp_path / way)
    elif way == "messages":
        export(tmp_path / "run", tmp_path / way, to=way)
    files = sorted((tmp_path / way).rglob("*.parquet"))
    groups = [
        footer.row_group(number) for footer in map(pq.read_metadata, files) for number in range(footer.num_row_groups)
    ]
    assert sum(group.num_rows for group in groups) == len(rows)
    assert max(group.total_byte_size for group in groups) <= 128 << 20
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    assert all(column.has_offset_index for column in columns)
