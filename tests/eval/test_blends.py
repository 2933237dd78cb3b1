from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.evaluation import SUBSET, ReferenceModel, blended_state, change_clip, image_path
from helpers.loops import make_clip
from helpers.training import write_tiny_clip
from torch.nn.functional import normalize

from dialog_eval.data.image_index import ImageIndex
from dialog_eval.data.images import embed_images
from dialog_eval.models import Models, blend_weights
from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError

TEXTS = ["a red circle", "", "is there a large blue square " * 5, "no"]


def load(folder: Path) -> Clip:
    return load_clip(str(folder))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_text_vectors(clips: tuple[Path, Path], batch_size: int) -> None:
    base, tuned = map(load, clips)
    models = Models(tuned, "t", base, "b", [("weight", 0.7), ("embedding", 0.7)], batch_size=batch_size)
    assert [variant.label for variant in models.variants] == ["b", "t", "t, weight blend 0.7", "t, embedding blend 0.7"]
    first, second = (ReferenceModel(folder).texts(TEXTS) for folder in clips)
    third = ReferenceModel(clips[1], blended_state(*clips, 0.7)).texts(TEXTS)
    encoded = models.encode_texts(TEXTS)
    assert len(encoded) == 3, "an embedding blend encodes nothing"
    wanted = [first, second, third, normalize(0.7 * first + 0.3 * second, dim=-1)]
    for variant, vectors in zip(models.variants, wanted, strict=True):
        found = models.text_vectors(variant, encoded)
        torch.testing.assert_close(found.double(), vectors, rtol=0, atol=1e-5)
    assert (models.texts, models.truncated_texts) == (4, 1)


@pytest.mark.parametrize("custom", [False, True])
def test_the_ends_of_a_weight_blend(custom: bool) -> None:
    towers = [TextTower(make_clip(custom=custom).model) for _ in range(2)]
    for parameter in towers[1].parameters():
        parameter.data += 0.1
    for beta, end in ((1.0, towers[0]), (0.0, towers[1])):
        blended = blend_weights(towers[0], towers[1], beta).state_dict()
        assert all(torch.equal(blended[name], value) for name, value in end.state_dict().items())
    assert torch.equal(towers[1].state_dict()["ln_final.bias"], torch.full((32,), 0.1)), "as they were"


def test_image_vectors(split: Path, clips: tuple[Path, Path], tmp_path: Path) -> None:
    other = change_clip(clips[0], tmp_path / "other", seed=5, images=True)
    models = Models(load(clips[1]), "t", load(other), "b", batch_size=5)
    source = ImageIndex(str(split / "images"))
    done = list[tuple[str, int, int | None]]()
    wanted = set(source.image_ids[2:])
    found = embed_images(models, source, wanted, lambda stage, count, total, *_: done.append((stage, count, total)))
    assert done == [("images", 0, 10), ("images", 5, 10), ("images", 10, 10)]
    ids = source.image_ids[:1:-1]
    paths = [image_path(split, SUBSET, index) for index in range(SUBSET.limit)][:1:-1]
    for variant, folder in zip(models.variants, (other, clips[1]), strict=True):
        vectors = found.of(variant, ids)
        torch.testing.assert_close(vectors.double(), ReferenceModel(folder).images(paths), rtol=0, atol=1e-5)


def test_equal_image_towers_are_one(clips: tuple[Path, Path]) -> None:
    base, tuned = map(load, clips)
    assert len(Models(tuned, "t", base, "b").image_towers) == 1
    # An activation is not among the weights.
    changes: list[dict[str, Any]] = [{"config": {**base.config, "quick_gelu": True}}]
    changes.append({"preprocess_config": {**base.preprocess_config, "mean": (0.1, 0.2, 0.3)}})
    for change in changes:
        assert len(Models(tuned, "t", replace(base, **change), "b").image_towers) == 2


def test_tokenizers_that_differ_are_both_used(clips: tuple[Path, Path]) -> None:
    base, tuned = map(load, clips)
    tuned.config["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"}
    tuned.tokenizer.clean_fn = lambda text: text.replace("b", "a")
    models = Models(tuned, "t", base, "b", [("embedding", 0.5)])
    first, second = models.encode_texts(["a", "b"])
    assert not torch.allclose(first[0], first[1], atol=1e-3)
    torch.testing.assert_close(second[0], second[1], rtol=0, atol=1e-6)


def test_what_cannot_be_blended(clips: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = map(load, clips)
    with pytest.raises(UsageError, match="give --baseline"):
        Models(tuned, "t", blends=[("weight", 0.5)])
    with pytest.raises(UsageError, match="both labelled 't'"):
        Models(tuned, "t", base, "t")
    with pytest.raises(UsageError, match="different image towers"):
        Models(tuned, "t", load(write_tiny_clip(tmp_path / "x", seed=3)), "b", [("embedding", 0.5)])
    other = make_clip(layers=2)
    for name in ("tokenizer", "preprocess", "preprocess_config"):
        object.__setattr__(other, name, getattr(base, name))
    same = make_clip()
    for name in ("tokenizer", "preprocess", "preprocess_config"):
        object.__setattr__(same, name, getattr(base, name))
    same.model.visual.load_state_dict(other.model.visual.state_dict())
    assert len(Models(same, "t", other, "b", [("embedding", 0.5)]).variants) == 3
    with pytest.raises(UsageError, match=r"different architectures \(transformer.resblocks.2"):
        Models(same, "t", other, "b", [("weight", 0.5)])


def test_weights_that_are_not_finite(clips: tuple[Path, Path]) -> None:
    tuned = load(clips[1])
    tuned.model.text_projection.data[0, 0] = torch.nan
    models = Models(tuned, "t")
    with pytest.raises(UsageError, match="tuned gives vectors that are not finite"):
        models.encode_texts(["a"])
