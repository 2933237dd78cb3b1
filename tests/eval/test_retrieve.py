from typing import Any

import numpy as np
import pytest
import torch
from helpers.memory import MEASURABLE, run_script
from helpers.retrieval import clip_benchmark_recall, ranks_by_sorting
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from dialog_eval.metrics.retrieval import Retrieval, retrieve

KS = [1, 5, 10]


def clip_benchmark(images: Tensor, texts: Tensor, text_to_image: Tensor) -> tuple[dict[int, float], dict[int, float]]:
    scores = texts @ images.T
    pairs = torch.zeros_like(scores, dtype=torch.bool)
    pairs[torch.arange(len(texts)), text_to_image] = True
    image = {k: clip_benchmark_recall(scores, pairs, k) for k in KS}
    return image, {k: clip_benchmark_recall(scores.T, pairs.T, k) for k in KS}


def vectors(kind: str, images: int, texts: int, dim: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-norm image and text vectors, and each text's image; every image has a text, some have many."""
    rng = torch.Generator().manual_seed(images * 1000 + texts)
    text_to_image = torch.cat([torch.arange(images), torch.randint(images, (texts - images,), generator=rng)])
    text_to_image = text_to_image[torch.randperm(texts, generator=rng)]
    if kind == "random":
        noise, image_vectors = 1.5, torch.randn(images, dim, generator=rng)
    else:
        noise = 0.5
        image_vectors = torch.randn(8, dim, generator=rng)[torch.arange(images) % 8]
        image_vectors = image_vectors + 0.05 * torch.randn(images, dim, generator=rng)
    text_vectors = image_vectors[text_to_image] + noise * torch.randn(texts, dim, generator=rng)
    if kind == "ties":
        # Few values, whose products are exact: most scores are shared by many.
        image_vectors, text_vectors = (torch.round(v[:, :3]) for v in (image_vectors, text_vectors))
        return image_vectors, text_vectors, text_to_image
    return normalize(image_vectors, dim=1), normalize(text_vectors, dim=1), text_to_image


@pytest.mark.parametrize("kind", ["random", "clustered", "ties"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_retrieve_against_sorting(kind: str, chunk: int) -> None:
    images, texts, text_to_image = vectors(kind, 40, 130)
    found = retrieve(images, texts, text_to_image, KS, chunk=chunk)
    texts_of = [(text_to_image == image).nonzero()[:, 0].tolist() for image in range(40)]
    wanted_image = ranks_by_sorting(texts.double() @ images.double().T, text_to_image[:, None].tolist())
    wanted_text = ranks_by_sorting(images.double() @ texts.double().T, texts_of)
    assert found.image_ranks.tolist() == wanted_image
    assert found.text_ranks.tolist() == wanted_text
    assert found.image_recall == {k: np.mean(np.array(wanted_image) < k) for k in KS}
    assert found.text_recall == {k: np.mean(np.array(wanted_text) < k) for k in KS}


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_retrieve_against_clip_benchmark(kind: str) -> None:
    images, texts, text_to_image = vectors(kind, 300, 1500)
    found = retrieve(images, texts, text_to_image, KS)
    image, text = clip_benchmark(images, texts, text_to_image)
    assert found.image_recall == pytest.approx(image, abs=1e-6)
    assert found.text_recall == pytest.approx(text, abs=1e-6)
    assert 0 < found.image_recall[1] < found.image_recall[10] < 1, "a test that can tell"


def test_ties_lie_between_the_luckiest_and_the_unluckiest_order() -> None:
    """torch.topk, and so CLIP_benchmark, leaves open which of equal scores comes first."""
    images, texts, text_to_image = vectors("ties", 100, 400)
    scores, pairs = texts @ images.T, one_hot(text_to_image, 100).bool()
    own = scores[torch.arange(400), text_to_image][:, None]
    lucky, unlucky = (scores > own).sum(1), (scores >= own).sum(1) - 1
    found = retrieve(images, texts, text_to_image, KS)
    for k in KS:
        least, most = ((ranks < k).float().mean().item() for ranks in (unlucky, lucky))
        assert least < found.image_recall[k] < most
        assert least <= clip_benchmark_recall(scores, pairs, k) <= most


def test_collapsed_model_gets_chance() -> None:
    found = retrieve(torch.ones(50, 4), torch.ones(250, 4), torch.arange(250) // 5, [1, 10])
    assert found.image_recall == {1: 1 / 50, 10: 10 / 50}
    assert found.text_recall == {1: 1 / 50, 10: 2 / 50}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vectors_give_no_ties_of_their_own(dtype: torch.dtype) -> None:
    images, texts, text_to_image = (v.to(dtype) if v.is_floating_point() else v for v in vectors("random", 200, 600))
    half, whole = (retrieve(i, t, text_to_image, KS) for i, t in ((images, texts), (images.double(), texts.double())))
    assert half.image_ranks.tolist() == whole.image_ranks.tolist()
    assert half.text_ranks.tolist() == whole.text_ranks.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_vectors": torch.ones(3, 5)}, r"\(3, 5\) and \(4, 2\)"),
        ({"image_vectors": torch.ones(3)}, r"\(3,\) and \(4, 2\)"),
        ({"text_to_image": torch.tensor([0, 1, 2])}, "4 queries"),
        ({"text_to_image": torch.tensor([0, 1, 2, 3])}, "query 3"),
        ({"text_to_image": torch.tensor([0, 0, 2, 2])}, "image 1 has no text"),
        ({"text_to_image": torch.ones(4, 3, dtype=torch.bool)}, r"text_to_image .* \(4, 3\)"),
        ({"text_vectors": torch.full((4, 2), torch.nan)}, "NaN"),
        ({"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_wrong_vectors(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"image_vectors": torch.ones(3, 2), "text_vectors": torch.ones(4, 2), "ks": KS}
    given |= {"text_to_image": torch.tensor([0, 1, 2, 2])}
    assert isinstance(retrieve(**given), Retrieval)
    with pytest.raises(ValueError, match=message):
        retrieve(**(given | change))


MEASURE = """
import torch
from dialog_eval.metrics.retrieval import retrieve
from helpers.memory import peak_rss

images, texts = torch.randn(5_000, 32), torch.randn(25_000, 32)
retrieve(images[:5], texts[:25], torch.arange(25) % 5, [1])
before = peak_rss()
retrieve(images, texts, torch.arange(25_000) % 5_000, [1, 5, 10], chunk=64)
print(peak_rss() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not MEASURABLE, reason="reads the peak from Linux")
def test_memory_stays_bounded() -> None:
    """All scores of 5,000 images and 25,000 texts would take 477 MB, the pairs as bool 119 MB, one-hot int64 954 MB."""
    done = run_script(MEASURE)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60e6
