"""The gate that asks a CLIP."""

import random
from typing import Any

import open_clip
import pytest
import torch
from helpers.rows import make_row
from PIL import Image

from dialog_gen.clip.base import CLIP_MODELS
from dialog_gen.core.errors import UsageError
from dialog_gen.gates.similarity import Similarity, SimilaritySettings
from dialog_gen.shapes.language import ask
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene
from dialog_gen.sources.images import decode_image

SHAPES_CLIP = SimilaritySettings(model="shapes-clip", pretrained=None)


def row(number: int) -> dict[str, Any]:
    scene = draw_scene("test", 3, number)
    asked = ask(scene, random.Random(number), 1 + number % 3)
    texts = [{"user": q.question, "assistant": q.answer} for q in asked]
    return make_row(number, texts=texts, images=[{"bytes": render_png(scene), "path": None}])


def test_scores_are_cosines_of_open_clip() -> None:
    rows = [row(number) for number in range(5)]
    rows[1]["images"], rows[3]["images"] = None, [{"bytes": b"no image", "path": None}]
    scorer = Similarity(SHAPES_CLIP, {})
    scores = scorer.score(rows)
    scorer.close()
    place = f"local-dir:{CLIP_MODELS.get('shapes-clip')}"
    made: Any = open_clip.create_model_and_transforms(place)
    model, _, preprocess = made
    tokenizer = open_clip.get_tokenizer(place)
    model.eval()
    for number, (one, found) in enumerate(zip(rows, scores, strict=True)):
        if number in (1, 3):
            assert found == [None] * len(one["texts"])
            continue
        image: Image.Image = decode_image(one["images"][0]["bytes"])
        with torch.inference_mode():
            seen = model.encode_image(preprocess(image)[None])
            said = model.encode_text(tokenizer([f"{p['user']} {p['assistant']}" for p in one["texts"]]))
        expected = torch.cosine_similarity(seen, said).tolist()
        assert found == pytest.approx(expected, abs=1e-5)


def test_of_several_images_the_largest_cosine_counts() -> None:
    rows = [row(number) for number in range(4)]
    texts = rows[0]["texts"]
    together = {**rows[1], "texts": texts, "images": [image for one in rows[1:] for image in one["images"]]}
    alone = [{**one, "texts": texts} for one in rows[1:]]
    scorer = Similarity(SHAPES_CLIP, {})
    first, found, *others = scorer.score([rows[0], together, *alone])
    assert first == pytest.approx(scorer.score([rows[0]])[0], abs=1e-6)
    scorer.close()
    assert found == pytest.approx([max(scores) for scores in zip(*others, strict=True)], abs=1e-6)  # type: ignore[type-var]


def test_without_any_image() -> None:
    rows = [make_row(0, images=None)]
    scorer = Similarity(SHAPES_CLIP, {})
    assert scorer.score(rows) == [[None]]
    scorer.close()


def test_an_unknown_model_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(UsageError, match="unknown model 'ViT-B-23'"):
        Similarity(SimilaritySettings(model="ViT-B-23"), {})
