"""`dialog-eval` against evaluations of a few lines, with open_clip's own methods."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import (
    SUBSET,
    ReferenceModel,
    annotations,
    blended_state,
    captions,
    change_clip,
    image_path,
    vqa_files,
)
from torch import Tensor
from torch.nn.functional import normalize

from dialog_eval.metrics.vqa import vqa_accuracy
from dialog_eval.results import Entry, Results, load_results

Texts = Callable[[Sequence[str]], Tensor]

NEAR = 1e-5


@pytest.fixture(scope="module")
def images(split: Path, clips: tuple[Path, Path]) -> Tensor:
    """(scenes, D)."""
    return ReferenceModel(clips[0]).images([image_path(split, SUBSET, index) for index in range(SUBSET.limit)])


@pytest.fixture(scope="module")
def texts(clips: tuple[Path, Path]) -> dict[str, Texts]:
    """What each entry's label should encode texts like."""
    base, tuned = (ReferenceModel(folder).texts for folder in clips)
    return {
        "base": base,
        "tuned": tuned,
        "tuned, embedding blend 0.9": lambda some: normalize(0.9 * base(some) + 0.1 * tuned(some), dim=-1),
        "tuned, embedding blend 0.25": lambda some: normalize(0.25 * base(some) + 0.75 * tuned(some), dim=-1),
        "tuned, weight blend 0.9": ReferenceModel(clips[1], blended_state(*clips, 0.9)).texts,
        "tuned, weight blend 0.25": ReferenceModel(clips[1], blended_state(*clips, 0.25)).texts,
    }


@pytest.fixture
def common(split: Path, clips: tuple[Path, Path], tmp_path: Path) -> list[object]:
    models = ["--checkpoint", clips[1], "--baseline", clips[0], "--device", "cpu", "--batch-size", 7]
    return [*models, "--images", split / "images", "--out", tmp_path / "results.json"]


def read(common: list[object]) -> Results:
    return load_results(Path(str(common[-1])))


def values(entry: Entry, name: str) -> list[float]:
    metric = entry.metric(name)
    assert metric is not None
    return metric.values


def check_hits(hits: list[float], scores: Tensor, relevant: Tensor, k: int) -> None:
    """Of each query: is any relevant candidate among the k best? Both answers are right where float32 cannot tell."""
    best = scores.masked_fill(~relevant, -2).amax(1, keepdim=True)
    sure, possible = (((scores > best + d) & ~relevant).sum(1) < k for d in (-NEAR, NEAR))
    assert (sure == possible).double().mean() > 0.9, "a test that can tell"
    assert all(s <= hit <= p for s, hit, p in zip(sure.tolist(), hits, possible.tolist(), strict=True))


def check_retrieval(
    entry: Entry, texts: Texts, images: Tensor, split: Path, per_image: int = 5, folds: int = 1
) -> None:
    records: Any = json.loads(Path(captions(split)).read_text())["annotations"]
    kept = [record for record in records if record["id"] % 5 < per_image]
    scores = texts([record["caption"] for record in kept]) @ images.T
    of = torch.tensor([record["image_id"] for record in kept])
    pairs = of[:, None] == torch.arange(12)
    fold_of = torch.arange(12) * folds // 12
    scores = scores.masked_fill(fold_of[of][:, None] != fold_of, -torch.inf)
    for k in (1, 5, 10):
        check_hits(values(entry, f"image R@{k}"), scores, pairs, k)
        check_hits(values(entry, f"text R@{k}"), scores.T, pairs.T, k)
    metric = entry.metric("image R@1")
    assert metric is not None
    assert metric.groups == of.tolist()


def vqa_scores(
    texts: Texts, images: Tensor, split: Path, candidates: list[str] | None, form: str, calibrate: str, blind: bool
) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """Of each question: answer -> score; and its annotation."""
    questions, annotated = (json.loads(Path(path).read_text()) for path in vqa_files(split))
    mean = normalize(images.mean(0), dim=-1)
    scored: list[tuple[dict[str, float], dict[str, Any]]] = []
    for question, annotation in zip(questions["questions"], annotated["annotations"], strict=True):
        asked = question["question"]
        answers = candidates or question["multiple_choices"]
        vectors = texts([form.format(q=asked, a=answer) for answer in answers])
        seen = vectors @ (mean if blind else images[question["image_id"]])
        if calibrate == "mean-image" and not blind:
            seen = seen - vectors @ mean
        if calibrate == "text":
            seen = seen - vectors @ texts([asked])[0]
        scored.append((dict(zip(answers, seen.tolist(), strict=True)), annotation))
    return scored


def check_vqa(
    entry: Entry,
    texts: Texts,
    images: Tensor,
    split: Path,
    *,
    candidates: list[str] | None = None,
    form: str = "{q} {a}",
    calibrate: str = "none",
    exact: bool = False,
) -> list[str]:
    """Returns what should have been said, but for candidates that are too near to one another for float32."""
    said, kinds, clear = list[str](), list[str](), 0
    accuracy = values(entry, "accuracy")
    scored = vqa_scores(texts, images, split, candidates, form, calibrate, blind=entry.label.endswith(", blind"))
    for value, (scores, annotation) in zip(accuracy, scored, strict=True):
        best = sorted(scores, key=lambda answer: -scores[answer])
        near = [answer for answer in best if scores[answer] > scores[best[0]] - NEAR]
        answers = [answer["answer"] for answer in annotation["answers"]]
        truth = annotation["multiple_choice_answer"]
        assert value in [float(answer == truth) if exact else vqa_accuracy(answer, answers) for answer in near]
        clear += len(near) == 1
        said.append(best[0])
        kinds.append(annotation["answer_type"])
    assert clear > 0.8 * len(scored), "a test that can tell"
    for kind in ("yes/no", "number", "other"):
        assert values(entry, f"accuracy, {kind}") == [a for a, of in zip(accuracy, kinds, strict=True) if of == kind]
    return said


def check_question_types(entries: list[Entry], of: list[Entry], split: Path) -> None:
    """The questions of each type have the accuracy that they have among all."""
    annotated = json.loads(Path(annotations(split)).read_text())["annotations"]
    assert [entry.label for entry in entries] == [entry.label for entry in of]
    for entry, whole in zip(entries, of, strict=True):
        kinds = {a["question_type"] for a in annotated}
        assert {metric.name for metric in entry.metrics} == {f"accuracy, {kind}" for kind in kinds}
        for kind in kinds:
            every = zip(values(whole, "accuracy"), annotated, strict=True)
            assert values(entry, f"accuracy, {kind}") == [value for value, a in every if a["question_type"] == kind]


def vqa_arguments(split: Path) -> list[object]:
    questions, answers = vqa_files(split)
    return ["--questions", questions, "--annotations", answers, "--image-list", captions(split)]


@pytest.mark.parametrize(("per_image", "folds", "said"), [(5, 1, ""), (2, 1, ""), (2, 3, ", 3 folds of 4 images")])
def test_retrieval(
    dialog_eval: Cli,
    common: list[object],
    split: Path,
    images: Tensor,
    texts: dict[str, Texts],
    per_image: int,
    folds: int,
    said: str,
) -> None:
    options = ["--captions", captions(split), "--captions-per-image", per_image, "--folds", folds]
    done = dialog_eval("retrieval", *options, *common)
    assert done.code == 0, done.err
    results = read(common)
    assert results.baseline == "base"
    assert [entry.label for entry in results.entries] == ["base", "tuned"]
    for entry in results.entries:
        check_retrieval(entry, texts[entry.label], images, split, per_image, folds)
        expected = f"first {per_image} captions of each image: 12 images, {12 * per_image} captions{said}"
        assert entry.protocol == expected
    assert results.entries[0].weights_sha256 != results.entries[1].weights_sha256
    assert values(results.entries[0], "image R@1") != values(results.entries[1], "image R@1"), "a test that can tell"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["--calibrate", "mean-image"], {"calibrate": "mean-image"}),
        (["--calibrate", "text"], {"calibrate": "text"}),
        (["--format", "labelled"], {"form": "Question: {q} Answer: {a}"}),
        (["--format", "answer", "--calibrate", "text"], {"form": "{a}", "calibrate": "text"}),
        (["--metric", "exact"], {"exact": True}),
        (["--candidates", "top1000", "--train-annotations", "TRAIN"], {"candidates": []}),
    ],
    ids=" ".join,
)
def test_vqa(
    dialog_eval: Cli,
    common: list[object],
    split: Path,
    images: Tensor,
    texts: dict[str, Texts],
    options: list[str],
    expected: dict[str, Any],
) -> None:
    answers = [a["multiple_choice_answer"] for a in json.loads(Path(annotations(split)).read_text())["annotations"]]
    if "candidates" in expected:
        expected = {"candidates": sorted(set(answers), key=lambda a: (-answers.count(a), answers.index(a)))}
    options = [annotations(split) if option == "TRAIN" else option for option in options]
    done = dialog_eval("vqa", *vqa_arguments(split), *options, *common)
    assert done.code == 0, done.err
    results = read(common)
    entries = [entry for entry in results.entries if entry.task == "vqa"]
    assert [entry.label for entry in entries] == ["base", "base, blind", "tuned", "tuned, blind"]
    said = [
        check_vqa(entry, texts[entry.label.removesuffix(", blind")], images, split, **expected) for entry in entries
    ]
    check_question_types([entry for entry in results.entries if entry.task == "vqa-types"], entries[::2], split)
    assert said[0] != said[1]
    assert said[0] != said[2]
    groups = results.entries[0].metrics[0].groups
    assert groups == [index for index in range(12) for _ in range(3)]


def test_references(dialog_eval: Cli, common: list[object], split: Path, tmp_path: Path) -> None:
    content = json.loads(Path(annotations(split)).read_text())
    # A training split in which every question of a type has another answer than here, one of them no candidate.
    kinds = sorted({a["question_type"] for a in content["annotations"]})
    prior = {kind: "nobody says this" if n == 0 else "red" for n, kind in enumerate(kinds)}
    train = [{**a, "multiple_choice_answer": prior[a["question_type"]]} for a in content["annotations"]]
    (tmp_path / "train.json").write_text(json.dumps({"annotations": train}))
    # The first question that "yes" would answer does not offer it.
    asked = json.loads(Path(vqa_files(split)[0]).read_text())["questions"]
    first = next(n for n, a in enumerate(content["annotations"]) if a["multiple_choice_answer"] == "yes")
    asked[first]["multiple_choices"] = ["perhaps" if c == "yes" else c for c in asked[first]["multiple_choices"]]
    (tmp_path / "questions.json").write_text(json.dumps({"questions": asked}))
    arguments = ["vqa", *vqa_arguments(split), *common, "--questions", tmp_path / "questions.json"]

    def expected(say: Callable[[dict[str, Any]], str]) -> float:
        choices = {question["question_id"]: question["multiple_choices"] for question in asked}
        found = [
            vqa_accuracy(say(a), [x["answer"] for x in a["answers"]]) if say(a) in choices[a["question_id"]] else 0
            for a in content["annotations"]
        ]
        return float(np.mean(found))

    def found() -> dict[str, float]:
        return {r.name: r.value for r in read(common).references if r.metric == "accuracy"}

    assert dialog_eval(*arguments).code == 0
    own = {
        kind: Counter(
            a["multiple_choice_answer"] for a in content["annotations"] if a["question_type"] == kind
        ).most_common(1)[0][0]
        for kind in kinds
    }
    yes = expected(lambda a: "yes")
    assert 0 < yes < 1
    prior_of_split = expected(lambda a: own[a["question_type"]])
    assert found() == pytest.approx({'always "yes"': yes, "question-type prior (of this split)": prior_of_split})
    assert dialog_eval(*arguments, "--train-annotations", tmp_path / "train.json").code == 0
    of_train = expected(lambda a: prior[a["question_type"]])
    assert found() == pytest.approx({'always "yes"': yes, "question-type prior": of_train})


def test_sweep(dialog_eval: Cli, common: list[object], split: Path, images: Tensor, texts: dict[str, Texts]) -> None:
    tasks = ["--captions", captions(split), *vqa_arguments(split)]
    done = dialog_eval("sweep", *tasks, "--betas", "1,0.9,0.25,0.9,0", *common, "--json")
    assert done.code == 0, done.err
    results = read(common)
    retrieval = [entry for entry in results.entries if entry.task == "retrieval"]
    vqa = [entry for entry in results.entries if entry.task == "vqa" and not entry.label.endswith("blind")]
    assert [entry.label for entry in retrieval] == [entry.label for entry in vqa] == list(texts)
    assert [(e.blend, e.beta) for e in vqa[2:4]] == [("embedding", 0.9), ("embedding", 0.25)]
    for entry in retrieval:
        check_retrieval(entry, texts[entry.label], images, split)
    said = {entry.label: tuple(check_vqa(entry, texts[entry.label], images, split)) for entry in vqa}
    assert len(set(said.values())) == len(texts), "a test that can tell"
    printed = json.loads(done.out)
    assert printed["baseline"] == "base"
    assert printed["entries"][0]["metrics"][0] == {
        key: getattr(retrieval[0].metrics[0], key) for key in ("name", "mean", "low", "high")
    }


@pytest.mark.parametrize("kind", ["labels", "folders"])
def test_classify(
    dialog_eval: Cli,
    common: list[object],
    split: Path,
    images: Tensor,
    texts: dict[str, Texts],
    tmp_path: Path,
    kind: str,
) -> None:
    classes = ["cats", "dogs", "white", "gray", "cream", "none", "seven"]
    wanted, order = [index * index % 5 for index in range(12)], list(range(12))
    (tmp_path / "templates").write_text("a photo of a {}.\n\nthe {} and a {}\n")
    options: list[object] = ["--templates", tmp_path / "templates"]
    forms = ["a photo of a {0}.", "the {0} and a {0}"]
    if kind == "labels":
        names = {f"{SUBSET.image_id(index)}.jpg": classes[number] for index, number in enumerate(wanted)}
        (tmp_path / "labels.json").write_text(json.dumps(names))
        (tmp_path / "classes").write_text("".join(f"{name}\t{name} thing\n" for name in classes))
        options += ["--labels", tmp_path / "labels.json", "--classes", tmp_path / "classes"]
        shown = [f"{name} thing" for name in classes]
    else:
        for index, number in enumerate(wanted):
            path = tmp_path / "sorted" / classes[number] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_path(split, SUBSET, index).read_bytes())
        options += ["--images", tmp_path / "sorted"]
        shown = sorted({classes[number] for number in wanted})
        wanted = [shown.index(classes[number]) for number in wanted]
        order.sort(key=lambda index: (shown[wanted[index]], str(index)))
    done = dialog_eval("classify", *common, *options)
    assert done.code == 0, done.err
    for entry in read(common).entries:
        vectors = [normalize(texts[entry.label]([form.format(c) for form in forms]).mean(0), dim=-1) for c in shown]
        scores = images[order] @ torch.stack(vectors).T
        labels = torch.tensor(wanted)[order]
        # Among five classes, the right one is always one of the first five.
        assert (entry.metric("top-5") is None) == (kind == "folders")
        for k in (1, 5) if kind == "labels" else (1,):
            check_hits(values(entry, f"top-{k}"), scores, labels[:, None] == torch.arange(len(shown)), k)
        hits = np.array(values(entry, "top-1"))
        assert values(entry, "mean per class") == [hits[labels == c].mean() for c in range(len(shown)) if c in labels]


@pytest.mark.parametrize("templates", ["openai", "simple"])
def test_template_sets(dialog_eval: Cli, common: list[object], templates: str) -> None:
    done = dialog_eval("classify", *common, "--templates", templates, "--label", "other label")
    assert done.code == 0, done.err
    assert {"openai": "80 templates", "simple": "7 templates"}[templates] in done.out
    assert "\nother label " in done.out
    base, other = read(common).entries
    apart = 100 * (np.mean(values(other, "top-1")) - np.mean(values(base, "top-1")))
    assert re.search(rf"\n  minus base +{re.escape(f'{round(apart, 1) + 0.0:+.1f}')} \[", done.out)


def test_a_checkpoint_alone(dialog_eval: Cli, common: list[object], split: Path) -> None:
    alone = [*common[:2], *common[4:]]
    assert dialog_eval("retrieval", "--captions", captions(split), *common).code == 0
    both = read(common)
    done = dialog_eval("retrieval", "--captions", captions(split), *alone)
    assert done.code == 0, done.err
    results = read(common)
    assert results.baseline is None
    # With a baseline there are examples too.
    assert results.entries == [entry.model_copy(update={"examples": None}) for entry in both.entries[1:]]
    assert set(results.settings["versions"]) == {"dialog-gen", "torch", "open_clip"}
    assert results.settings["models"]["tuned"]["weights_sha256"] == results.entries[0].weights_sha256


def test_other_image_towers(
    dialog_eval: Cli,
    common: list[object],
    split: Path,
    clips: tuple[Path, Path],
    tmp_path: Path,
    texts: dict[str, Texts],
) -> None:
    other = change_clip(clips[1], tmp_path / "other", seed=3, images=True)
    options = [*common, "--captions", captions(split), "--baseline", other]
    done = dialog_eval("retrieval", *options)
    assert done.code == 0, done.err
    base, tuned = read(common).entries
    for entry, folder in ((base, other), (tuned, clips[1])):
        model = ReferenceModel(folder)
        seen = model.images([image_path(split, SUBSET, index) for index in range(SUBSET.limit)])
        check_retrieval(entry, model.texts, seen, split)
    assert "different image towers" in dialog_eval("sweep", *options).mistake


def test_table(dialog_eval: Cli, common: list[object], split: Path, tmp_path: Path) -> None:
    assert dialog_eval("retrieval", "--captions", captions(split), *common).code == 0
    done = dialog_eval("table", common[-1], "--out", tmp_path / "table.md")
    assert done.code == 0, done.err
    assert "tuned" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("command", "change", "said"),
    [
        ("retrieval", ["--images", "SPLIT/none"], "nothing is at"),
        ("retrieval", ["--images", "SPLIT/vqa"], "no images in"),
        ("retrieval", ["--images", "SPLIT/images/00000/*.png"], "lacks"),
        ("retrieval", ["--captions", "SPLIT/truth.jsonl"], "is not a file of DOCCI's captions"),
        ("retrieval", ["--captions", "SPLIT/classification/labels_shapes_test.json"], "is not a COCO captions file"),
        ("retrieval", ["--captions", "none.json"], "No such file"),
        ("retrieval", ["--captions-per-image", "0"], "from 1 on, or all"),
        ("retrieval", ["--folds", "5"], "12 images cannot be cut into so many galleries of equal size"),
        ("retrieval", ["--folds", "12"], "each gallery has one image only"),
        ("retrieval", ["--folds", "0"], "give a number that divides them"),
        ("retrieval", ["--device", "abacus"], "--device abacus"),
        ("retrieval", ["--device", "cuda:99"], "--device cuda:99"),
        ("retrieval", ["--out", "SPLIT"], "is a folder"),
        ("retrieval", ["--out", "SPLIT/truth.jsonl"], "exists and is no results.json of dialog-eval"),
        ("retrieval", ["--out", "SPLIT/truth.jsonl/results.json"], "cannot be written"),
        ("retrieval", ["--checkpoint", "ViT-B-33"], "unknown model"),
        ("retrieval", ["--baseline-label", "tuned"], "both labelled 'tuned'"),
        ("vqa", ["--annotations", "SPLIT/vqa/MultipleChoice_shapes_test_questions.json"], "swapped"),
        ("vqa", ["--questions", "SPLIT/vqa/OpenEnded_shapes_test_questions.json"], "no multiple_choices"),
        ("vqa", ["--candidates", "top1000"], "--train-annotations"),
        ("vqa", ["--image-list", "SPLIT/truth.jsonl"], "list of images"),
        ("sweep", ["--betas", "0.5,1.5"], "1.5 is no share"),
        ("sweep", ["--betas", "half"], "--betas half"),
        ("sweep", ["--betas", "nan"], "nan is no share"),
        ("classify", ["--templates", "opnai"], "did you mean 'openai'"),
        ("classify", ["--templates", "SPLIT/truth.jsonl"], "has no {}"),
        ("classify", ["--classes", "SPLIT/truth.jsonl"], "lacks the class '00000'"),
        ("classify", ["--labels", "SPLIT/truth.jsonl"], "is no JSON"),
        ("classify", ["--images", "SPLIT/images/00000/*.png"], "lies in no folder"),
    ],
)
def test_wrong_use(
    dialog_eval: Cli, common: list[object], split: Path, command: str, change: list[str], said: str
) -> None:
    files: dict[str, list[object]] = {
        "retrieval": ["--captions", captions(split)],
        "vqa": vqa_arguments(split),
        "sweep": ["--captions", captions(split)],
        "classify": ["--templates", "simple"],
    }
    done = dialog_eval(command, *files[command], *common, *(part.replace("SPLIT", str(split)) for part in change))
    assert said in done.mistake
    assert not Path(str(common[-1])).exists()


def test_wrong_sweeps(dialog_eval: Cli, common: list[object], split: Path, tmp_path: Path) -> None:
    alone = [*common[:2], *common[4:]]
    assert "give --baseline" in dialog_eval("sweep", "--captions", captions(split), *alone).mistake
    assert "nothing to measure" in dialog_eval("sweep", *common).mistake
    choose = ["--captions", captions(split), "--blend", "embedding", "--choose", tmp_path / "chosen"]
    assert (
        "--choose chooses among blends of weights: it needs --blend weight"
        in dialog_eval("sweep", *choose, *common).mistake
    )
    assert "both --questions and" in dialog_eval("sweep", "--questions", "x", *common).mistake


def test_an_image_that_cannot_be_read(dialog_eval: Cli, common: list[object], split: Path, tmp_path: Path) -> None:
    for index in range(SUBSET.limit):
        path = tmp_path / "images" / f"{SUBSET.image_id(index)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = image_path(split, SUBSET, index).read_bytes()
        path.write_bytes(data if index != 5 else data[:-30])
    done = dialog_eval("retrieval", "--captions", captions(split), *common, "--images", tmp_path / "images")
    assert "00000/000005.png cannot be read (truncated" in done.mistake
    assert not Path(str(common[-1])).exists()


def test_a_label_that_is_no_utf_8_is_refused_before_the_work(
    dialog_eval: Cli, common: list[object], split: Path
) -> None:
    done = dialog_eval("retrieval", "--captions", captions(split), *common, "--label", "a\udcff")
    assert "option 'label' is no UTF-8" in done.mistake


@pytest.mark.parametrize("as_json", [False, True])
def test_results_are_there_though_they_cannot_be_printed(
    dialog_eval: Cli, common: list[object], split: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    arguments = ["retrieval", "--captions", captions(split), *common, *(["--json"] if as_json else [])]
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = dialog_eval(*arguments)
    assert done.mistake == "error: cannot write the output: No space left on device.\n"
    assert [entry.label for entry in read(common).entries] == ["base", "tuned"]


def test_results_are_printed_though_they_cannot_be_written(
    dialog_eval: Cli, common: list[object], split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_bytes", lambda *_: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    done = dialog_eval("retrieval", "--captions", captions(split), *common)
    assert done.code == 2
    assert done.err.startswith("error: cannot write ")
    assert "\ntuned " in done.out


def test_help_is_light() -> None:
    script = "import sys, dialog_eval.cli; print(sorted({'torch', 'open_clip', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
