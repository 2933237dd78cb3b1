"""From the shipped manifests to figures: archives as published, fetched, unpacked, and read by `dialog-eval`."""

import codecs
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers.cli import Cli
from helpers.evaluation import ReferenceModel
from helpers.file_server import FileServer
from helpers.published import (
    COCO_IDS,
    archives,
    captions_of,
    captions_val2014,
    coco_name,
    dataset_coco,
    of_v2,
    photo,
    vqa_files,
)

from dialog_eval.data.coco import load_captions
from dialog_eval.results import load_results
from dialog_gen.download.archives import ArchiveSource, fetch_files
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.manifests import Manifest, load_manifest

POLICY = FetchPolicy(allow_loopback=True)


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with FileServer(archives()).serving() as serving:
        yield serving


def served(name: str, server: FileServer) -> Manifest:
    """A shipped manifest, its addresses on the local server, without what it promises of the real files."""
    manifest = load_manifest(name)
    assert isinstance(manifest.source, ArchiveSource)
    files = {
        split: tuple(
            file.model_copy(
                update={
                    "url": f"{server.url}{urlsplit(file.url or '').path}",
                    "size_bytes": None,
                    "sha256": None,
                }
            )
            for file in wanted
        )
        for split, wanted in manifest.source.files.items()
    }
    return manifest.model_copy(update={"source": manifest.source.model_copy(update={"files": files})})


@pytest.mark.parametrize(
    ("name", "split", "use", "protocol", "counts"),
    [
        ("mscoco", "test", "retrieval", "first 5 captions of each image: 3 images, 15 captions", (15, 3)),
        ("mscoco", "val", "retrieval", "first 5 captions of each image: 2 images, 10 captions", (10, 2)),
        ("vqav1-real", "val", "vqa", "MC-18, official accuracy", (18,)),
        ("vqav1-abstract", "val", "vqa", "MC-18, official accuracy", (9,)),
        ("vqav2", "val", "vqa", "top-3129 (3 exist), official accuracy", (18,)),
    ],
)
def test_from_manifest_to_figures(
    server: FileServer,
    tmp_path: Path,
    dialog_eval: Cli,
    clips: tuple[Path, Path],
    name: str,
    split: str,
    use: str,
    protocol: str,
    counts: tuple[int, ...],
) -> None:
    summary = fetch_files(served(name, server), split, tmp_path / "data", POLICY, None)
    results = tmp_path / "results.json"
    options = shlex.split(summary.uses[use])
    ended = dialog_eval(use, "--checkpoint", clips[1], "--device", "cpu", "--out", results, *options)
    assert (ended.code, ended.err) == (0, "")
    entry, *_ = load_results(results).entries
    assert entry.protocol == protocol
    assert entry.dataset.endswith(f" {split}") == (use == "retrieval")
    assert [len(metric.values) for metric in entry.metrics[:: 3 if use == "retrieval" else 99]] == list(counts)


def test_vqa_v2(tmp_path: Path, dialog_eval: Cli, clips: tuple[Path, Path]) -> None:
    folder = tmp_path / "val2014"
    folder.mkdir()
    for number in COCO_IDS:
        (folder / coco_name(number)).write_bytes(photo(number, "JPEG"))
    questions, annotations = vqa_files("mscoco")
    for number, one in enumerate(annotations["annotations"]):  # Three to ten of the ten agree.
        for answer in one["answers"][3 + number % 8 :]:
            answer["answer"] = "another"
    first = vqa_command(tmp_path, questions, annotations)
    (tmp_path / "v2").mkdir()
    second = vqa_command(tmp_path / "v2", of_v2(questions, "questions"), of_v2(annotations, "annotations"))
    common = ["--checkpoint", clips[1], "--device", "cpu", "--images", folder, "--out", tmp_path / "r.json"]
    said = dialog_eval(*second, *common).mistake
    assert "has no multiple_choices: give the MultipleChoice questions, which only VQA v1 has, or --candidates" in said
    top = ["--candidates", "top1000", "--train-annotations", tmp_path / "v2" / "annotations.json"]
    assert dialog_eval(*second, *common, *top).code == 0
    entry = load_results(tmp_path / "r.json").entries[0]
    assert entry.protocol == "top-1000 (3 exist), official accuracy"
    # By hand: the nearest of the three answers, and min(people / 3, 1) averaged over the ten sets of nine people.
    model = ReferenceModel(clips[1])
    expected: list[float] = []
    for question, told in zip(questions["questions"], annotations["annotations"], strict=True):
        texts = [f"{question['question']} {answer}" for answer in ("yes", "2", "red")]
        image = model.images([folder / coco_name(question["image_id"])])
        said = ("yes", "2", "red")[int((image @ model.texts(texts).T).argmax())]
        people = [answer["answer"] for answer in told["answers"]]
        nines = [people[:n] + people[n + 1 :] for n in range(10)]
        expected.append(sum(min(nine.count(said) / 3, 1) for nine in nines) / 10)
    assert entry.metrics[0].values == pytest.approx(expected)
    assert 0 < sum(expected) < len(expected)
    mixed = [*first[:3], *second[3:]]
    assert "both have 0 questions" in dialog_eval(*mixed, *common).mistake


def test_karpathy_splits_and_cocos_own_file_agree(tmp_path: Path) -> None:
    (tmp_path / "dataset_coco.json").write_text(json.dumps(dataset_coco()))
    (tmp_path / "captions_val2014.json").write_text(json.dumps(captions_val2014()))
    whole = load_captions(tmp_path / "captions_val2014.json")
    assert whole.split is None
    found: dict[int, list[str]] = {}
    for split, numbers in {"test": [42, 133, 391895], "val": [581929, 400044], "restval": [73]}.items():
        part = load_captions(tmp_path / "dataset_coco.json", split)
        assert part.split == split
        assert list(part.captions) == numbers
        assert part.file_names == {number: f"val2014/{coco_name(number)}" for number in numbers}
        found |= part.captions
    assert found == whole.captions == {number: captions_of(number) for number in COCO_IDS}
    assert load_captions(tmp_path / "dataset_coco.json").split == "test"


Change = Callable[[dict[str, Any]], object]


def vqa_command(folder: Path, questions: Any, annotations: Any) -> list[object]:
    for name, content in (("questions", questions), ("annotations", annotations)):
        (folder / f"{name}.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return ["vqa", "--questions", folder / "questions.json", "--annotations", folder / "annotations.json"]


@pytest.fixture
def ask(tmp_path: Path, dialog_eval: Cli) -> Callable[..., str]:
    """The one line that a command on COCO's five images ends with."""
    for number in COCO_IDS:
        path = tmp_path / "val2014" / coco_name(number)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo(number, "JPEG"))

    def call(*command: object) -> str:
        common = ["--checkpoint", "none", "--out", tmp_path / "r.json", "--images", tmp_path / "val2014"]
        return dialog_eval(*command, *common).mistake

    return call


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda q, a: q["questions"][4].pop("image_id"),
            "questions.json is not a VQA questions file: questions.4.im",
        ),
        (lambda q, a: a.pop("annotations"), "Field required. Are questions and annotations swapped?"),
        (lambda q, a: a["annotations"].pop(), "both have 17 questions, 1 only in "),
        (lambda q, a: q["questions"][3]["multiple_choices"].pop(), "question 730 has 17 multiple_choices, expected 18"),
        (lambda q, a: a["annotations"].append(a["annotations"][0]), "annotations.json holds question 420 twice"),
        (lambda q, a: a.update(data_subtype="train2014"), "of the split 'val2014'"),
    ],
)
def test_broken_vqa_files(tmp_path: Path, ask: Callable[..., str], change: Any, message: str) -> None:
    questions, annotations = vqa_files("mscoco")
    change(questions, annotations)
    assert message in ask(*vqa_command(tmp_path, questions, annotations))


def test_a_byte_order_mark_is_no_content(tmp_path: Path, ask: Callable[..., str]) -> None:
    questions, annotations = (codecs.BOM_UTF8 + json.dumps(content).encode() for content in vqa_files("mscoco"))
    assert ask(*vqa_command(tmp_path, questions, annotations)) == ask(*vqa_command(tmp_path, *vqa_files("mscoco")))


@pytest.mark.parametrize("cut", [0, 10, 1000, -1])
def test_files_cut_off(tmp_path: Path, ask: Callable[..., str], cut: int) -> None:
    questions, annotations = vqa_files("mscoco")
    command = vqa_command(tmp_path, json.dumps(questions).encode()[:cut], annotations)
    said = ask(*command)
    assert "questions.json is not a VQA questions file: the file: Invalid JSON: EOF" in said
    assert "It is damaged or cut off: fetch it again." in said
    for content in (dataset_coco(), captions_val2014()):
        path = tmp_path / "captions.json"
        path.write_bytes(json.dumps(content).encode()[:cut])
        assert "captions.json is not a captions file: the file: Invalid JSON: EOF" in ask(
            "retrieval", "--captions", path
        )


def test_archives_and_other_files_in_their_place(tmp_path: Path, ask: Callable[..., str]) -> None:
    path = tmp_path / "captions.zip"
    path.write_bytes(archives()["annotations/annotations_trainval2014.zip"])
    assert "Unpack it, and give the file in it." in ask("retrieval", "--captions", path)
    _, annotations = vqa_files("mscoco")
    assert "questions: Field required" in ask(*vqa_command(tmp_path, captions_val2014(), annotations))
    assert "is not a COCO captions file" in ask("retrieval", "--captions", tmp_path / "annotations.json")


@pytest.mark.parametrize("content", [dataset_coco(), captions_val2014(), None])
def test_an_image_that_is_listed_but_missing(tmp_path: Path, ask: Callable[..., str], content: Any) -> None:
    (tmp_path / "val2014" / coco_name(133)).unlink()
    if content is None:
        assert "lacks image 133; it has such as COCO_val2014_000000000042.jpg" in ask(
            *vqa_command(tmp_path, *vqa_files("mscoco"))
        )
        return
    (tmp_path / "c.json").write_text(json.dumps(content))
    said = ask("retrieval", "--captions", tmp_path / "c.json")
    assert "lacks image '" in said
    assert f"{coco_name(133)}'; it has such as" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["images"][1].pop("sentences"),
            "dataset_coco.json is not a file of Karpathy's splits: images.1.sen",
        ),
        (lambda d: d["images"][0].pop("filename"), "images.0.filename: Field required"),
        (lambda d: d["images"][0]["sentences"][2].pop("raw"), "images.0.sentences.2.raw: Field required"),
        (lambda d: d["images"].append(d["images"][0]), "dataset_coco.json lists image 42 twice"),
        (lambda d: d["images"][2]["sentences"].clear(), "dataset_coco.json: image 133 has no sentences"),
        (lambda d: d.pop("images"), "images: Field required"),
        (lambda d: d.pop("dataset"), "is not a COCO captions file: images.0.id: Field required"),
        (lambda d: d["images"].clear(), "--split test: "),
    ],
)
def test_broken_karpathy_files(tmp_path: Path, ask: Callable[..., str], change: Change, message: str) -> None:
    content = dataset_coco()
    change(content)
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(content))
    assert message in ask("retrieval", "--captions", path)


@pytest.mark.parametrize("command", ["retrieval", "sweep"])
def test_splits_that_are_not_there(tmp_path: Path, ask: Callable[..., str], command: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(dataset_coco()))
    baseline = ["--baseline", "b"] if command == "sweep" else []
    said = ask(command, "--captions", path, "--split", "tets", *baseline)
    assert "--split tets: " in said
    assert "has no such split: did you mean 'test'? Known: restval, test, val" in said
    path.write_text(json.dumps(captions_val2014()))
    said = ask(command, "--captions", path, "--split", "test", *baseline)
    assert "is a COCO captions file, of one split; leave it out" in said


def test_train_takes_restval_with_it_and_other_sets_have_no_coco_ids(tmp_path: Path) -> None:
    content = dataset_coco()
    content["dataset"] = "flickr30k"
    for image, split in zip(content["images"], ["train", "restval", "test", "val", "train", "test"], strict=True):
        image["split"] = split
        del image["cocoid"], image["filepath"]
    (tmp_path / "d.json").write_text(json.dumps(content))
    assert load_captions(tmp_path / "d.json", "train").file_names == {
        place: coco_name(list(COCO_IDS)[place]) for place in (0, 1, 4)
    }
