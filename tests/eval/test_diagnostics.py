"""Alignment, uniformity and MMD against their definitions in double loops, and `dialog-eval diagnostics`."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import SUBSET, ReferenceModel, captions, image_path
from helpers.training import scene_row, write_dialogues
from torch import Tensor
from torch.nn.functional import normalize

from dialog_eval import evaluate, write_table
from dialog_eval.metrics.distributions import alignment, cosine_with_others, mmd2_of_similarities, uniformity
from dialog_eval.metrics.intervals import values_of_mean_over_parts
from dialog_train.losses.mmd import mmd2_rbf


def unit(count: int, seed: int, dim: int = 6) -> Tensor:
    return normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def uniformity_by_hand(vectors: Tensor) -> float:
    pairs = [
        math.exp(-2 * float((u - v).square().sum()))
        for i, u in enumerate(vectors)
        for j, v in enumerate(vectors)
        if i != j
    ]
    return math.log(sum(pairs) / len(pairs))


def test_alignment() -> None:
    images, texts = unit(9, 0), unit(9, 1)
    expected = [float((x - y) @ (x - y)) for x, y in zip(images, texts, strict=True)]
    assert alignment(images, texts).tolist() == pytest.approx(expected)
    assert alignment(images, images).tolist() == [0] * 9


def test_uniformity() -> None:
    vectors = unit(40, 2)
    assert uniformity(vectors).mean().item() == pytest.approx(uniformity_by_hand(vectors), abs=1e-12)
    assert uniformity(vectors.float()).mean().item() == pytest.approx(uniformity_by_hand(vectors), abs=1e-5)
    assert uniformity(vectors[:1].expand(7, -1)).mean().item() == pytest.approx(0)
    with pytest.raises(ValueError, match="pairs of vectors, got 1"):
        uniformity(vectors[:1])


def cosine_with_others_by_hand(vectors: Tensor, owners: list[int]) -> float:
    pairs = [
        float(u @ v) for u, mine in zip(vectors, owners, strict=True) for v, other in zip(vectors, owners, strict=True)
        if mine != other
    ]  # fmt: skip
    return sum(pairs) / len(pairs)


def test_cosine_with_others() -> None:
    vectors, owners = unit(12, 2), [5, 5, 5, 0, 0, 9, 1, 1, 1, 1, 9, 3]
    found = cosine_with_others(vectors, torch.tensor(owners)).mean().item()
    assert found == pytest.approx(cosine_with_others_by_hand(vectors, owners), abs=1e-12)
    with pytest.raises(ValueError, match="two owners"):
        cosine_with_others(vectors, torch.zeros(12, dtype=torch.int64))


def test_mmd_agrees_with_that_of_the_training() -> None:
    images, texts, others = unit(30, 3), unit(80, 4), normalize(unit(50, 5) + unit(1, 6), dim=1)
    expected = mmd2_rbf(images @ texts.T, images @ others.T, 0.2).item()
    assert expected > 1e-4, "a test that can tell"
    assert mmd2_of_similarities(images, texts, images, others).mean().item() == pytest.approx(expected, rel=1e-3)
    assert mmd2_of_similarities(images, texts, images, texts).tolist() == [0] * 30


def jackknife(values_of: Callable[[list[int]], float], count: int) -> float:
    """The standard error by leaving each item out."""
    left = torch.tensor([values_of([j for j in range(count) if j != i]) for i in range(count)])
    return math.sqrt((count - 1) / count * float((left - left.mean()).square().sum()))


def test_intervals_are_those_of_leaving_items_out() -> None:
    """The spread of the values gives the standard error that a jackknife of the definition gives."""
    vectors = unit(120, 7)
    told = float(uniformity(vectors).std() / math.sqrt(120))
    assert told == pytest.approx(jackknife(lambda kept: float(uniformity(vectors[kept]).mean()), 120), rel=0.05)
    told = float(cosine_with_others(vectors, torch.arange(120)).std() / math.sqrt(120))
    again = jackknife(lambda kept: float(cosine_with_others(vectors[kept], torch.tensor(kept)).mean()), 120)
    assert told == pytest.approx(again, rel=0.05)
    # A spread of similarities that differs from image to image.
    images, texts, others = unit(120, 8), unit(60, 9), normalize(unit(40, 10) + 0.3 * unit(1, 11), dim=1)
    told = float(mmd2_of_similarities(images, texts, images, others).std() / math.sqrt(120))
    again = jackknife(lambda kept: float(mmd2_of_similarities(images[kept], texts, images[kept], others).mean()), 120)
    assert told == pytest.approx(again, rel=0.05)


def test_mean_over_parts() -> None:
    values, parts = [1.0, 0, 1, 1, 0, 0, 0], ["a", "a", "b", "b", "b", "c", "c"]
    found = values_of_mean_over_parts(values, parts)
    assert found.mean() == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    # Each part's mean varies as a mean of its items does, and the parts are equally important.
    rng = torch.Generator().manual_seed(0)
    hits = (torch.rand(900, generator=rng) < 0.7).double()
    sizes = [600, 200, 100]
    names = [part for part, size in enumerate(sizes) for _ in range(size)]
    error = values_of_mean_over_parts(hits.tolist(), names).std() / 30
    by_part = [some.var(correction=0) / len(some) for some in hits.split(sizes)]
    assert error == pytest.approx(math.sqrt(sum(by_part)) / 3, rel=1e-9)
    with pytest.raises(ValueError, match="needs a value"):
        values_of_mean_over_parts([], [])


def test_from_the_command_line(split: Path, clips: tuple[Path, Path], tmp_path: Path, dialog_eval: Cli) -> None:
    content = json.loads(Path(captions(split)).read_text())
    for annotation in content["annotations"]:
        annotation["caption"] = f"What is it? {annotation['caption']}"
    (tmp_path / "dialogues.json").write_text(json.dumps(content))
    out = tmp_path / "r.json"
    ended = dialog_eval(
        "diagnostics", "--checkpoint", clips[1], "--baseline", clips[0], "--images", split / "images", "--device",
        "cpu", "--captions", captions(split), "--other-captions", tmp_path / "dialogues.json",
        "--captions-per-image", "2", "--out", out,
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert "(95 % interval)" in ended.out
    texts: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        texts.setdefault(annotation["image_id"], []).append(annotation["caption"])
    others = [text for some in texts.values() for text in some[:2]]
    mine = [text.removeprefix("What is it? ") for text in others]
    models = [ReferenceModel(folder) for folder in clips]
    images = [model.images([image_path(split, SUBSET, index) for index in texts]) for model in models]
    vectors = [(model.texts(mine), model.texts(others)) for model in models]
    similarities = [image @ text.T for image, (text, _) in zip(images, vectors, strict=True)]
    for model, label in enumerate(("base", "tuned")):
        own, of_others = vectors[model]
        expected = {
            "alignment": float((images[model].repeat_interleave(2, dim=0) - own).square().sum(1).mean()),
            "uniformity, images": uniformity_by_hand(images[model]),
            "uniformity, captions": uniformity_by_hand(own),
            "cosine, captions and their images": float((images[model].repeat_interleave(2, dim=0) * own).sum(1).mean()),
            "cosine, captions of different images": cosine_with_others_by_hand(
                own, [place // 2 for place in range(len(own))]
            ),
            "MMD² to the baseline": mmd2_rbf(similarities[model], similarities[0], 0.2).item(),
            "MMD² of captions to other texts": mmd2_rbf(similarities[model], images[model] @ of_others.T, 0.2).item(),
        }
        entry = next(e for e in json.loads(out.read_text())["entries"] if e["label"] == label)
        told = {metric["name"]: metric["mean"] for metric in entry["metrics"]}
        assert told == {name: pytest.approx(value, abs=2e-4) for name, value in expected.items()}
        assert f"{told['alignment']:.3f} [" in ended.out
    for name in ("t.md", "t.html"):
        write_table([out], tmp_path / name)
        page = (tmp_path / name).read_text()
        assert "MMD² to the baseline" in page
        assert "In brackets 95 % bootstrap intervals" in page
        assert "In percent" not in page


def test_dialogues_are_other_texts(split: Path, clips: tuple[Path, Path], tmp_path: Path, dialog_eval: Cli) -> None:
    """As a file with the same texts would be; a pair that a gate rejects is none, and images may be more."""
    content = json.loads(Path(captions(split)).read_text())
    names = {image["id"]: image_path(split, SUBSET, n) for n, image in enumerate(content["images"])}
    ids = [str(path.relative_to(split / "images")) for path in names.values()]
    rows = [scene_row(n, image_id=name, gates=None) for n, name in enumerate([*ids, "another"])]
    rejected = [[{"gate": "leak", "score": 1.0, "marked": True}], [], []]
    rows[0] = scene_row(0, image_id=rows[0]["image_id"], gates=rejected)
    kept = [[f"{p['user']} {p['assistant']}" for p in row["texts"]] for row in rows[:-1]]
    kept[0] = kept[0][1:]
    texts = [(image, text) for image, some in zip(names, kept, strict=True) for text in some]
    content["annotations"] = [{"image_id": image, "id": n, "caption": text} for n, (image, text) in enumerate(texts)]
    (tmp_path / "others.json").write_text(json.dumps(content))
    dialogues = write_dialogues(tmp_path / "dialogues", {"a": rows})
    common = ["diagnostics", "--checkpoint", clips[1], "--images", split / "images", "--captions", captions(split)]
    found: list[float] = []
    for number, others in enumerate((["--other-captions", tmp_path / "others.json"], ["--dialogues", dialogues])):
        out = tmp_path / f"{number}.json"
        ended = dialog_eval(*common, *others, "--out", out)
        assert ended.code == 0, ended.err
        metrics = json.loads(out.read_text())["entries"][0]["metrics"]
        found += [one["mean"] for one in metrics if one["name"] == "MMD² of captions to other texts"]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0] > 0
    fewer = write_dialogues(tmp_path / "fewer", {"a": rows[3:]})
    out = ["--out", tmp_path / "r.json"]
    assert "lacks 3 of the 12 images of --captions" in dialog_eval(*common, "--dialogues", fewer, *out).mistake
    assert "give a folder that `dialog-gen run" in dialog_eval(*common, "--dialogues", tmp_path, *out).mistake
    both = dialog_eval(*common, "--dialogues", dialogues, "--other-captions", tmp_path / "others.json", *out)
    assert "give one of them" in both.mistake


def test_mistakes(split: Path, tmp_path: Path, dialog_eval: Cli) -> None:
    content = json.loads(Path(captions(split)).read_text())
    first = content["images"][0]["id"]
    for name, kept in (("one.json", {first}), ("fewer.json", {image["id"] for image in content["images"][1:]})):
        some = {
            "images": [image for image in content["images"] if image["id"] in kept],
            "annotations": [one for one in content["annotations"] if one["image_id"] in kept],
        }
        (tmp_path / name).write_text(json.dumps(some))
    common = ["diagnostics", "--checkpoint", "none", "--images", split / "images", "--out", tmp_path / "r.json"]
    assert "has captions of one image" in dialog_eval(*common, "--captions", tmp_path / "one.json").mistake
    ended = dialog_eval(*common, "--captions", captions(split), "--other-captions", tmp_path / "fewer.json")
    assert "is not about the same images as" in ended.mistake


def test_two_models_are_compared_pairwise(split: Path, clips: tuple[Path, Path]) -> None:
    results = evaluate(
        "diagnostics", checkpoint=clips[1], baseline=clips[0], images=split / "images", captions=captions(split),
        device="cpu",
    )  # fmt: skip
    base, tuned = results.entries
    assert [m.name for m in base.metrics] == [m.name for m in tuned.metrics]
    assert base.metric("MMD² to the baseline") != tuned.metric("MMD² to the baseline")
    # The image tower is the same, so its uniformity is.
    assert base.metric("uniformity, images") == tuned.metric("uniformity, images")
