"""Pairs that do not match their image according to a CLIP model, as LAION was filtered (arXiv 2111.02114)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from dialog_gen.dataset.record import stored_images
from dialog_gen.gates.base import GATES, Gate, Limits, Row, Scores
from dialog_gen.gates.words import pair_text

if TYPE_CHECKING:
    import torch

    from dialog_gen.clip.base import Clip


class SimilaritySettings(Limits):
    """The model. There is no default limit, since the same cosine means different things in different models."""

    model: str = "ViT-B-32-quickgelu"
    """A model name of open_clip, a checkpoint folder, or `shapes-clip`."""
    pretrained: str | None = "laion400m_e31"
    """A pretrained tag of open_clip or a safetensors file. No default if `model` is set."""

    @model_validator(mode="before")
    @classmethod
    def _no_default_weights_for_another_model(cls, values: Any) -> Any:
        return {"pretrained": None, **values} if isinstance(values, dict) and "model" in values else values


@GATES.register("similarity")
class Similarity(Gate[SimilaritySettings]):
    """Cosine of the image's vector and the pair's (question and answer as one text); in [-1, 1].

    Of several images it is the largest cosine. None for a row without a readable image. A text that is longer than the
    model's context is truncated.
    """

    description = "cosine of image and pair under a CLIP model"
    settings_class = SimilaritySettings
    columns = ("texts", "images")
    needs_model = True
    order = 100

    def __init__(self, settings: SimilaritySettings, dataset_config: Mapping[str, Any]) -> None:
        from dialog_gen.clip.base import SEARCH
        from dialog_gen.clip.loader import check_clip

        super().__init__(settings, dataset_config)
        check_clip(settings.model, settings.pretrained, needs=SEARCH)
        self._clip: Clip | None = None

    def score(self, rows: Sequence[Row]) -> list[Scores]:
        """The scores of each row. The model is loaded at the first call."""
        import torch

        from dialog_gen.clip.base import SEARCH
        from dialog_gen.clip.loader import load_clip

        if self._clip is None:
            self._clip = load_clip(self.settings.model, self.settings.pretrained, needs=SEARCH)
            self._clip.model.to("cuda" if torch.cuda.is_available() else "cpu")
        with torch.inference_mode():
            return _cosines(self._clip, rows)

    def close(self) -> None:
        """Releases the model."""
        self._clip = None


def _cosines(clip: "Clip", rows: Sequence[Row]) -> list[Scores]:
    import torch
    from torch.nn.functional import normalize

    device = next(clip.model.parameters()).device
    scores: list[Scores] = [[None] * len(row["texts"]) for row in rows]
    pixels = {i: images for i, row in enumerate(rows) if row["texts"] and (images := _pixels(clip, row))}
    if not pixels:
        return scores
    texts = [pair_text(pair) for i in pixels for pair in rows[i]["texts"]]
    images = normalize(clip.model.encode_image(torch.stack([*chain(*pixels.values())]).to(device)), dim=-1)
    words = normalize(clip.model.encode_text(clip.tokenizer(texts).to(device)), dim=-1)
    # Every pair with every image of its row.
    together, pair, first = list[tuple[int, int]](), 0, 0
    for i, of_row in pixels.items():
        together += [(pair + k, first + n) for k in range(len(scores[i])) for n in range(len(of_row))]
        pair, first = pair + len(scores[i]), first + len(of_row)
    of_word, of_image = torch.tensor(together, device=device).unbind(dim=1)
    cosines = iter((images[of_image] * words[of_word]).sum(dim=-1).tolist())
    for i, of_row in pixels.items():
        scores[i] = [max(islice(cosines, len(of_row))) for _ in scores[i]]
    return scores


def _pixels(clip: "Clip", row: Row) -> "list[torch.Tensor]":
    from dialog_gen.sources.images import UnreadableImage, decode_image

    found: list[torch.Tensor] = []
    for data in stored_images(row):
        with suppress(UnreadableImage):
            found.append(clip.preprocess(decode_image(data)))
    return found
