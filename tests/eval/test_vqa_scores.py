from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dialog_eval.asking import scores
from dialog_eval.asking.scores import Asking, Indices, Question, best_candidates
from dialog_eval.asking.ways import Calibration, Way, Weights
from dialog_eval.data.images import ImageVectors
from dialog_eval.models import Models
from dialog_gen.clip.loader import load_clip

WORDS = ("red", "blue", "two", "yes", "no", "circle", "gray", "left")


@pytest.fixture
def models(clips: tuple[Path, Path]) -> Models:
    return Models(load_clip(str(clips[1])), "t", load_clip(str(clips[0])), "b", [("embedding", 0.5)])


@pytest.fixture
def images() -> ImageVectors:
    vectors = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    return ImageVectors(rows={f"i{row}": row for row in range(9)}, vectors=[normalize(vectors, dim=-1)])


def best(
    models: Models,
    images: ImageVectors,
    asked: list[Question],
    text_format: str = "{user} {assistant}",
    calibration: Calibration | None = None,
    **options: Any,
) -> Indices:
    asking = Asking(text_format=text_format, ways=(Way(debias=calibration),))
    return best_candidates(models, images, asked, asking, [[Weights(debias=1.0)] * 3], **options)[0]


def questions(count: int = 60, *, same_candidates: bool = False) -> list[Question]:
    """Few question texts, far apart from one another."""
    candidates = [WORDS[n % 8 :] + WORDS[: n % 8] for n in range(count)]
    return [
        Question(f"i{n * 5 % 9}", f"what is {n * 7 % 11}?", WORDS if same_candidates else candidates[n][:5])
        for n in range(count)
    ]


@pytest.mark.parametrize("calibration", [None, "mean-image", "text"])
@pytest.mark.parametrize("same_candidates", [False, True])
def test_bounds_change_nothing(
    models: Models,
    images: ImageVectors,
    monkeypatch: pytest.MonkeyPatch,
    calibration: Calibration | None,
    same_candidates: bool,
) -> None:
    asked = questions(same_candidates=same_candidates)
    whole = best(models, images, asked, calibration=calibration)
    assert len({tuple(row) for row in whole.reshape(6, -1)}) == 6, "a test that can tell"
    calls = list[list[str]]()
    encode = models.encode_texts

    def spy(texts: Sequence[str]) -> list[torch.Tensor]:
        calls.append(list(texts))
        return encode(texts)

    monkeypatch.setattr(models, "encode_texts", spy)
    for limits in ({"_TEXTS_PER_BUNDLE": 20}, {"_INDICES_PER_BUNDLE": 1}, {"_CANDIDATES_PER_GATHER": 12}):
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(scores, name, value)
            calls.clear()
            done = list[int]()
            found = best(models, images, asked, calibration=calibration, advance=done.append)
        assert (found == whole).mean() > 0.99  # but for what float32 cannot tell
        texts = [text for call in calls for text in call]
        assert len(texts) == len(set(texts)), "none is encoded twice"
        assert sum(done) == len(asked)
        if "_CANDIDATES_PER_GATHER" not in limits:
            assert len(calls) > 3
            assert max(map(len, calls)) <= 20 + 1 + len(WORDS)


def test_of_equal_candidates_the_first(models: Models, images: ImageVectors) -> None:
    asked = [Question("i1", "q", ("red", "red", "red"))] * 4
    assert not best(models, images, asked, "{assistant}").any()


def test_the_mean_image_counts_each_image_once(models: Models, images: ImageVectors) -> None:
    asked = [Question(f"i{n}", f"what {q}?", WORDS) for q in range(30) for n in ([0, 1] if q else [0, 0, 0, 0, 1])]
    found = best(models, images, asked)
    mean = normalize(images.vectors[0][:2].mean(0), dim=0)
    alone = ImageVectors(rows={"i0": 0, "i1": 0}, vectors=[mean[None]])
    sighted = best(models, alone, asked)[:, 0]
    assert (found[:, 1] == sighted).mean() > 0.99
    assert np.unique(sighted[1]).size > 1
