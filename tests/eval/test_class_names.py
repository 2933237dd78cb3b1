"""The words for classes: ImageNet's folders, whose names say nothing, and image sets of one class."""

import json
from pathlib import Path

import open_clip
import pytest
from helpers.cli import Cli
from helpers.evaluation import ReferenceModel
from helpers.inputs import png

from dialog_eval import evaluate
from dialog_eval.data.classes import texts_of_classes
from dialog_gen.core.errors import UsageError

IDS = ["n01440764", "n01443537", "n03445777"]
NAMES = ["tench", "goldfish", "golf ball"]
FILES = {
    "names.txt": "n03445777\tgolf ball\nn01440764\ttench\r\nn01443537\tgoldfish\n",
    "LOC_synset_mapping.txt": "\ufeffn01440764 tench, Tinca tinca\nn01443537 goldfish, Car\nn03445777 golf ball\n",
    "synset_words.txt": "n01440764 tench\nn01443537 goldfish\nn03445777 golf_ball\n",
    "imagenet_class_index.json": json.dumps(
        {str(n): [ident, name.replace(" ", "_")] for n, (ident, name) in enumerate(zip(IDS, NAMES, strict=True))}
    ),
    "ids.json": json.dumps(dict(zip(IDS, NAMES, strict=True))),
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images in each of three folders named by WordNet ids."""
    for number in range(6):
        path = tmp_path / "val" / IDS[number // 2] / f"ILSVRC2012_val_{number:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "val"


@pytest.mark.parametrize("name", FILES)
def test_lists_of_imagenets_classes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name])
    assert texts_of_classes(tmp_path / name, set(IDS)) == dict(zip(IDS, NAMES, strict=True))


@pytest.mark.parametrize("listed", [True, False])
def test_figures_are_those_of_the_names(images: Path, clips: tuple[Path, Path], tmp_path: Path, listed: bool) -> None:
    """With a list, and without: ids of ImageNet have names."""
    (tmp_path / "index.json").write_text(FILES["imagenet_class_index.json"])
    (tmp_path / "templates.txt").write_text("a photo of a {}\n")
    results = evaluate(
        "classify", checkpoint=clips[0], images=images, classes=tmp_path / "index.json" if listed else None,
        templates=str(tmp_path / "templates.txt"), device="cpu",
    )  # fmt: skip
    model = ReferenceModel(clips[0])
    scores = model.images(sorted(images.rglob("*.png"))) @ model.texts([f"a photo of a {name}" for name in NAMES]).T
    expected = [int(best) == number // 2 for number, best in enumerate(scores.argmax(1))]
    (entry,) = results.entries
    assert entry.metrics[0].values == expected
    # Each of three classes is among the first five.
    assert [metric.name for metric in entry.metrics] == ["top-1", "mean per class"]


@pytest.mark.parametrize("classes", [None, "n09999999\nn01443537\nn03445777\n"])
def test_ids_without_names_are_refused(
    images: Path, tmp_path: Path, dialog_eval: Cli, clips: tuple[Path, Path], classes: str | None
) -> None:
    (images / IDS[0]).rename(images / "n09999999")
    command = ["classify", "--checkpoint", clips[0], "--images", images, "--out", tmp_path / "r.json"]
    if classes:
        (tmp_path / "classes.txt").write_text(classes)
        command += ["--classes", tmp_path / "classes.txt"]
    said = dialog_eval(*command).mistake
    assert "the class n09999999 is an id of WordNet, not a name" in said
    assert "imagenet_class_index.json" in said
    assert not (tmp_path / "r.json").exists()


def test_one_class_is_refused(images: Path, tmp_path: Path, dialog_eval: Cli, clips: tuple[Path, Path]) -> None:
    (images / IDS[0]).rename(tmp_path / "one folder")
    (tmp_path / "dogs").mkdir()
    (tmp_path / "one folder").rename(tmp_path / "dogs" / "dog")
    command = ["classify", "--checkpoint", clips[0], "--images", tmp_path / "dogs", "--out", tmp_path / "r.json"]
    assert "only one class, 'dog', so every answer would be right" in dialog_eval(*command).mistake
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert dialog_eval(*command, "--classes", tmp_path / "classes.txt", "--templates", "simple").code == 0


def test_classes_of_the_same_text_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Equal scores go to the first, so no answer is ever the second."""
    (tmp_path / "c.txt").write_text("n01440764\tcrane\nn03445777\tgolf ball\nn01443537\tcrane\n")
    texts_of_classes(tmp_path / "c.txt", set(IDS))
    assert caplog.messages == [
        "the classes n01440764 and n01443537 have the same text 'crane': only n01440764 can be right"
    ]


def test_imagenet_by_its_own_name() -> None:
    """All its classes are candidates, also where images have some of them only."""
    texts = texts_of_classes(Path("imagenet"), set(IDS))
    assert list(texts) == sorted(texts)
    assert list(texts.values()) == list(open_clip.IMAGENET_CLASSNAMES)
    assert [texts[ident] for ident in IDS] == NAMES
    with pytest.raises(UsageError, match="the class 'dog' is none of the ids of ImageNet's 1,000 classes"):
        texts_of_classes(Path("imagenet"), {*IDS, "dog"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.json", "[]", "must be a JSON object such as"),
        ("c.json", '{"0": ["n01440764"]}', "must be a JSON object such as"),
        ("c.json", '{"0": 3}', "must be a JSON object such as"),
        ("c.json", "{", "is no JSON"),
        ("c.json", '{"0": ["a", "b"], "1": ["a", "c"]}', "has the class 'a' twice"),
        ("c.txt", "a\na\tb\n", "has the class 'a' twice"),
        ("c.txt", " \n", "is empty"),
        ("c.json", '{"0": ["n01440764", ""], "1": ["n01443537", "_"]}', "the class 'n01440764' has an empty name"),
        ("c.json", '{"0": ["n01440764", "n01440764 "], "1": ["b", "c"]}', "is an id of WordNet"),
        ("c.txt", "N01440764\nb\n", "is an id of WordNet"),
        ("c.txt", "b\tn01440764 \nc\n", "is an id of WordNet"),
    ],
)
def test_wrong_lists(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        texts_of_classes(tmp_path / name, {"a"})
