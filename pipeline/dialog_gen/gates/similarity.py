"""Image-text similarity under a CLIP model, the filter of LAION and its like (arXiv 2111.02114)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from dialog_gen.clip.base import SEARCH, Clip
from dialog_gen.clip.loader import check_clip, load_clip
from dialog_gen.gates.scorer import Row, Scores
from dialog_gen.gates.settings import SimilaritySettings
from dialog_gen.gates.words import pair_text
from dialog_gen.sources.images import UnreadableImage, decode_image


class Similarity:
    """Cosine of the image and of question and answer as one text, in [-1, 1]; None for a row without image bytes.

    A text that is longer than the model's context is cut there.
    """

    columns = ("texts", "images")

    def __init__(self, settings: SimilaritySettings) -> None:
        check_clip(settings.model, settings.pretrained, needs=SEARCH)
        self._settings = settings
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._clip: Clip | None = None

    @torch.inference_mode()
    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """See `Scorer`. The model is loaded at the first call."""
        if self._clip is None:
            self._clip = load_clip(self._settings.model, self._settings.pretrained, needs=SEARCH)
            self._clip.model.to(self._device)
        pixels = [_pixels(self._clip, row) for row in rows]
        seen = [i for i, tensor in enumerate(pixels) if tensor is not None and rows[i]["texts"]]
        if not seen:
            return [[None] * len(row["texts"]) for row in rows]
        batch: Any = torch.stack([pixels[i] for i in seen])  # type: ignore[arg-type]
        texts = [pair_text(pair) for i in seen for pair in rows[i]["texts"]]
        images = normalize(self._clip.model.encode_image(batch.to(self._device)), dim=-1)
        words = normalize(self._clip.model.encode_text(self._clip.tokenizer(texts).to(self._device)), dim=-1)
        counts = torch.tensor([len(rows[i]["texts"]) for i in seen], device=self._device)
        cosines = (images.repeat_interleave(counts, dim=0) * words).sum(dim=-1).tolist()
        scores: list[Scores] = [[None] * len(row["texts"]) for row in rows]
        for i in seen:
            scores[i], cosines = cosines[: len(rows[i]["texts"])], cosines[len(rows[i]["texts"]) :]
        return scores

    def close(self) -> None:
        """See `Scorer`."""
        self._clip = None


def _pixels(clip: Clip, row: Row) -> torch.Tensor | None:
    data = row["images"][0]["bytes"] if row["images"] else None
    if data is None:
        return None
    try:
        return clip.preprocess(decode_image(data))
    except UnreadableImage:
        return None
