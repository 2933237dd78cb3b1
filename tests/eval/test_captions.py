"""Caption files as published, read for retrieval; and retrieval on one against a count by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.evaluation import ReferenceModel, image_path, write_split
from helpers.inputs import png
from helpers.retrieval import ranks_by_sorting

from dialog_eval import evaluate
from dialog_eval.data.captions import read_captions
from dialog_gen.core.errors import UsageError
from dialog_gen.shapes.files import ShapesSubset
from dialog_gen.shapes.worlds import FIRST, SECOND, World

DOCCI = [
    {"split": split, "image_file": f"{split}_{n:05d}.jpg", "description": f"{split} {n}"}
    for split, count in (("train", 1), ("test", 2), ("qual_dev", 1))
    for n in range(count)
]  # fmt: skip
DCI = {
    "sa_3.json": {"image": "sa_3.jpg", "short_caption": "Three.", "extra_caption": "More of it.", "mask_data": {}},
    "sa_1.json": {"image": "sa_1.jpg", "short_caption": "One.", "extra_caption": "", "mask_data": {"1": {"area": 3}}},
    "sa_2.json": {"image": "sa_2.jpg", "short_caption": "Two.", "extra_caption": "Long."},
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def by_name(path: Path, split: str | None = None) -> dict[str, list[str]]:
    found = read_captions(path, split)
    assert found.file_names is not None
    return {found.file_names[number]: texts for number, texts in found.captions.items()}


def test_flickr30k(tmp_path: Path) -> None:
    expected = {"1000.jpg": ["Two men .", "A man ; a dog"], "36.jpg": ["A dog runs across the grass .", 'A "dog"']}
    token = (
        '1000.jpg#0\tTwo men .\n1000.jpg#1\tA man ; a dog\n36.jpg#4\tA dog runs across the grass .\n36.jpg#5\tA "dog"\n'
    )
    assert by_name(write(tmp_path / "results_20130124.token", token)) == expected
    columns = (
        "image_name| comment_number| comment\n1000.jpg| 0| Two men .\n1000.jpg| 1| A man ; a dog\n"
        '36.jpg| 4   A dog runs across the grass .\n36.jpg| 5| A "dog"\n'
    )
    assert by_name(write(tmp_path / "results.csv", columns)) == expected
    assert by_name(write(tmp_path / "results.csv", columns.partition("\n")[2])) == expected
    listed = [{"image": f"flickr30k-images/{name}", "caption": texts} for name, texts in expected.items()]
    found = by_name(write(tmp_path / "flickr30k_test.json", listed))
    assert found == {f"flickr30k-images/{name}": texts for name, texts in expected.items()}
    one = [{"image": "val2014/a.jpg", "caption": "a"}, {"image": "val2014/a.jpg", "caption": "b"}]
    assert by_name(write(tmp_path / "flat.json", "\ufeff" + json.dumps(one))) == {"val2014/a.jpg": ["a", "b"]}


def test_docci(tmp_path: Path) -> None:
    path = write(tmp_path / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, DOCCI)))
    assert by_name(path) == {"test_00000.jpg": ["test 0"], "test_00001.jpg": ["test 1"]}
    assert by_name(path, "qual_dev") == {"qual_dev_00000.jpg": ["qual_dev 0"]}
    assert read_captions(path).split == "test"
    with pytest.raises(UsageError, match=r"--split tst: .* has no such split: did you mean 'test'"):
        read_captions(path, "tst")


def test_only_the_line_breaks_of_files_end_a_line(tmp_path: Path) -> None:
    for mark in "\u2028\x85\x0b\x0c\x1c":
        text = f"a star{mark}on white"
        write(tmp_path / "caption" / "1.txt", f"{text}\r\nsecond line\n")
        assert by_name(tmp_path / "caption") == {"1.jpg": [text]}
        assert by_name(write(tmp_path / "r.token", f"a.jpg#0\t{text}\ra.jpg#1\tx")) == {"a.jpg": [text, "x"]}


def test_urban1k(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write(tmp_path / "Urban1k" / "caption" / f"{number}.txt", f"Long text {number}.\nsecond line\n")
        write(tmp_path / "Urban1k" / "caption" / f"._{number}.txt", "what macOS adds to archives")
    expected = {f"{number}.jpg": [f"Long text {number}."] for number in (1, 9, 10)}
    for folder in (tmp_path / "Urban1k", tmp_path / "Urban1k" / "caption"):
        found = by_name(folder)
        assert found == expected
        assert list(found) == list(expected)


def test_dci(tmp_path: Path) -> None:
    for name, content in DCI.items():
        write(tmp_path / "dci" / "annotations" / name, content)
    write(tmp_path / "dci" / "splits.json", {"train": ["sa_3.json"], "valid": ["sa_1.json"], "test": ["sa_2.json"]})
    expected = {"sa_1.jpg": ["One."], "sa_2.jpg": ["Two.\nLong."], "sa_3.jpg": ["Three.\nMore of it."]}
    assert by_name(tmp_path / "dci") == by_name(tmp_path / "dci" / "annotations") == expected
    assert by_name(tmp_path / "dci", "valid") == {"sa_1.jpg": ["One."]}
    assert by_name(tmp_path / "dci" / "annotations", "test") == {"sa_2.jpg": ["Two.\nLong."]}
    with pytest.raises(UsageError, match="has no such split"):
        read_captions(tmp_path / "dci", "val")
    secret = write(tmp_path / "secret.json", DCI["sa_3.json"])
    splits = {"twice": ["sa_1.json", "sa_1.json"], "up": ["../../secret.json"], "whole": [str(secret)]}
    write(tmp_path / "dci" / "splits.json", splits)
    assert by_name(tmp_path / "dci", "twice") == {"sa_1.jpg": ["One."]}
    for name in ("up", "whole"):
        with pytest.raises(UsageError, match=rf"split {name} has '.*secret.json', which is not in "):
            read_captions(tmp_path / "dci", name)


def test_retrieval_of_descriptions(tmp_path: Path, clips: tuple[Path, Path]) -> None:
    texts = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("star", "circle", "square")]
    for number, text in enumerate(texts):
        write(tmp_path / "Urban1k" / "caption" / f"{number}.txt", f"{text} and more\n")
        image = tmp_path / "Urban1k" / "image" / f"{number}.png"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(png(number))
    common = {"checkpoint": clips[0], "images": tmp_path / "Urban1k" / "image", "device": "cpu"}
    (entry,) = evaluate("retrieval", captions=tmp_path / "Urban1k", **common).entries  # type: ignore[arg-type]
    model = ReferenceModel(clips[0])
    images = model.images([tmp_path / "Urban1k" / "image" / f"{number}.png" for number in range(6)])
    scores = model.texts([f"{text} and more" for text in texts]) @ images.T
    ranks = ranks_by_sorting(scores, [[number] for number in range(6)])
    assert entry.metrics[0].values == [float(rank == 0) for rank in ranks]
    ranks = ranks_by_sorting(scores.T.contiguous(), [[number] for number in range(6)])
    assert [m.values for m in entry.metrics if m.name == "text R@1"] == [[float(rank == 0) for rank in ranks]]
    # The name of the dataset depends on the captions only.
    write(tmp_path / "Urban1k" / "image" / "notes.txt", "x")
    assert entry.dataset.startswith("Urban1k ")
    (again,) = evaluate("retrieval", captions=tmp_path / "Urban1k" / "caption", **common).entries  # type: ignore[arg-type]
    assert entry.dataset.split()[1] == again.dataset.split()[1]


@pytest.mark.parametrize("version", [FIRST, SECOND], ids=lambda version: version.name)
def test_long_texts_of_the_world(tmp_path: Path, clips: tuple[Path, Path], version: World[Any]) -> None:
    subset = ShapesSubset(split="test", seed=0, limit=12, shard_size=12, world=version)
    world = write_split(tmp_path, subset)
    captions = world / "retrieval" / f"descriptions_{version.name}_test.jsonlines"
    found = evaluate("retrieval", checkpoint=clips[0], images=world / "images", captions=captions, device="cpu")
    model = ReferenceModel(clips[0])
    texts = [json.loads(line)["description"] for line in captions.read_text().splitlines()]
    assert max(int((model.tokenizer(text) != 0).sum()) for text in texts) == model.tokenizer.context_length
    scores = model.texts(texts) @ model.images([image_path(world, subset, index) for index in range(12)]).T
    ranks = ranks_by_sorting(scores, [[number] for number in range(12)])
    assert found.entries[0].metrics[0].values == [float(rank == 0) for rank in ranks]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.token", "1000.jpg#0 Two men", "is not IMAGE#N, tab, text"),
        ("r.token", "", "is empty"),
        ("r.json", '[{"image": "a.jpg", "caption": []}]', "image 'a.jpg' has an empty caption"),
        ("r.json", '{"annotations": [{"image_id": 3, "caption": " "}]}', "image 3 has an empty caption"),
        (
            "r.json",
            '{"dataset": "x", "images": [{"imgid": 3, "filename": "a", "split": "test", "sentences": [{"raw": ""}]}]}',
            "image 3 has an empty caption",
        ),
        ("r.token", "a.jpg#0\tx\na.jpg#1\t\n", "image 'a.jpg' has an empty caption|is not IMAGE"),
        ("r.csv", "image_name| comment_number| comment\n", "holds no captions"),
        ("r.csv", "image| n| c\nx.jpg\n", r"is not IMAGE\| N\| text"),
        ("d.jsonl", '{"image_file": "x", "split": "test"}', "record 1: description: Field required"),
        ("l.json", '[{"image": "x", "caption": 3}]', "is not a file of captions: record 1: caption"),
        ("l.json", "[", "is not a file of captions"),
        ("folder/readme.md", "x", "has no captions: neither"),
        ("folder/a.json", '{"image": "x"}', "is not a file of DCI: short_caption: Field required"),
        ("caption/1.txt", "  \n", "is empty"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UsageError, match=message):
        read_captions(path.parent if path.parent != tmp_path else path)


def test_a_split_of_a_file_without_splits(tmp_path: Path, dialog_eval: Cli) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png(0))
    path = write(tmp_path / "r.token", "a.jpg#0\tx\n")
    common = ["--checkpoint", "none", "--images", tmp_path / "images", "--out", tmp_path / "r.json"]
    ended = dialog_eval("retrieval", *common, "--captions", path, "--split", "val")
    assert f"--split val: {path} has no splits; leave it out" in ended.mistake
