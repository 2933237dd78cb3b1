"""The training system of MaMMUT and its data. The model is in `dialog_gen.clip.mammut`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import grid_sample, normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import save_clip
from dialog_gen.clip.mammut.checkpoint import as_mammut
from dialog_gen.clip.mammut.decoder import MammutText
from dialog_gen.clip.text.tokens import padding_of
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_train.data.pixel_set import Normalization, PixelBatch, PixelBatches
from dialog_train.data.training_set import columns_of
from dialog_train.losses.base import LOSSES
from dialog_train.losses.next_token import IGNORED, next_token_loss, next_token_sums
from dialog_train.processes import gather_rows
from dialog_train.system import Share
from dialog_train.systems.mammut.config import MammutRecipe

# Smallest share of the image's area that a region of cropped positions may have.
_LEAST_AREA = 0.1


class MammutTraining:
    """A `System` that trains all of a MaMMUT. If `clip` is a plain CLIP, its towers are used in place."""

    may_leave_parameters_unused = False

    def __init__(self, clip: Clip, recipe: MammutRecipe, questions: Sequence[str] = ()) -> None:
        """`questions`: the questions that the model asks by default when it generates; they replace earlier ones.

        Raises UsageError for towers of another kind than MaMMUT's, and if `clip` is a MaMMUT whose cross-attention
        layers differ from the recipe's.
        """
        clip = as_mammut(clip, recipe.cross_attention_every, recipe.seed)
        config = clip.model.config
        if recipe.cross_attention_every != config.cross_attention_every:
            raise UsageError(
                f"{clip.name} reads the image every {config.cross_attention_every} layers: set cross_attention_every = "
                f"{config.cross_attention_every}."
            )
        config.questions = list(questions) or config.questions
        self._clip = clip
        self.name = clip.name
        self.fingerprint: dict[str, Any] = {"weights_sha256": clip.weights_sha256}
        model: Any = clip.model
        rows, columns = model.visual.grid_size
        if recipe.cropped_positions and rows != columns:
            raise UsageError(f"cropped_positions is for square images: {clip.name} has {rows} x {columns} patches.")
        model.logit_scale.requires_grad_(recipe.optim.logit_scale == "learn")
        self.model: nn.Module = model
        self.logit_scale: nn.Parameter | None = model.logit_scale
        self.module: nn.Module = _TwoPasses(clip, recipe)
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes the model folder."""
        save_clip(self._clip, folder, changed)


class _TwoPasses(nn.Module):
    def __init__(self, clip: Clip, recipe: MammutRecipe) -> None:
        super().__init__()
        self.mammut: Any = clip.model
        self.text = TextTower(clip.model)
        self.normalization = Normalization(clip.preprocess_config)
        self._recipe, self._loss = recipe, LOSSES.get(recipe.loss, where="loss")

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        decoder, visual = self.mammut.text, self.mammut.visual
        positions: dict[str, Tensor] = {}
        if batch.position_boxes is not None:
            positions["positional_embedding"] = cropped_positions(visual.positional_embedding, batch.position_boxes)
        images, tokens = functional_call(visual, positions, self.normalization(batch.pixels))
        (texts,) = self.text(batch.captions)
        image = decoder.read(tokens)
        sums = [_sums(decoder, with_image(batch.captions.tokens, decoder), image)]
        if batch.dialogues is not None:
            # A pair has the image's token instead of the start token, a caption has both, so the decoder can tell them
            # apart.
            pairs = with_image(batch.dialogues.tokens[:, 1:], decoder)
            sums.append(_sums(decoder, pairs, image))
        # Mixed precision is for the towers only; losses need full float32.
        with torch.autocast(texts.device.type, enabled=False):
            captioning = next_token_loss(gather_rows(torch.cat(sums)))
            images, texts = (normalize(rows.float(), dim=-1) for rows in (images, texts))
            scale = self.mammut.logit_scale.exp()
            contrastive = self._loss(images, texts, scale, **self._loss.options_of(self._recipe))
            return {
                "contrastive_loss": self._recipe.contrastive_weight * contrastive,
                "captioning_loss": self._recipe.captioning_weight * captioning,
            }


class MammutBatches:
    """`Data` of a pixel set; if the recipe crops positions, with a region for each image."""

    def __init__(self, recipe: MammutRecipe, batches: PixelBatches) -> None:
        self._batches, self._recipe = batches, recipe
        self.fingerprint: dict[str, Any] = batches.fingerprint
        self.steps_per_epoch = batches.steps_per_epoch

    def batch(self, step: int, share: Share) -> PixelBatch:
        """A process's share of the batch of a step, as `Data` describes."""
        batch = self._batches.batch(step, share)
        if not self._recipe.cropped_positions:
            return batch
        size = self._recipe.optim.batch_size
        # Drawn for the whole batch, so that an image's region does not depend on the process that handles it.
        boxes = random_boxes(np.random.default_rng([self._recipe.seed, step, 1]), size)
        mine = boxes[columns_of(share.rank, share.world_size, size)]
        return replace(batch, position_boxes=torch.from_numpy(mine.astype(np.float32)))


def with_image(tokens: Tensor, decoder: MammutText) -> Tensor:
    """Puts the image's token before the tokens: (N, L) -> (N, L + 1)."""
    return torch.cat([torch.full_like(tokens[:, :1], decoder.image_id), tokens], 1)


def random_boxes(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Random regions (count, 4): x1, y1, x2, y2 in images of size 1 (arXiv 2305.07011, section 3.2).

    x1, y1 are uniform in (0, 1), then x2 in (x1, 1) and y2 in (y1, 1). A region of less than a tenth of the area is
    drawn again.
    """
    boxes = np.zeros((count, 4))
    missing = np.arange(count)
    while len(missing):
        start = rng.random((len(missing), 2))
        end = start + (1 - start) * rng.random((len(missing), 2))
        boxes[missing] = np.concatenate([start, end], 1)
        missing = missing[(end - start).prod(1) < _LEAST_AREA]
    return boxes


def cropped_positions(table: Tensor, boxes: Tensor) -> Tensor:
    """A ViT's positions (1 + G^2, width) and regions (N, 4) -> positions of each region (N, 1 + G^2, width).

    The positions are interpolated bilinearly at the centres of G x G cells of the region. The paper first upsamples the
    positions and then crops; the result is the same.
    """
    side = round((len(table) - 1) ** 0.5)
    if side**2 != len(table) - 1:
        raise ValueError(f"{len(table)} positions are no class token and a square of patches")
    centres = (torch.arange(side, device=table.device) + 0.5) / side
    x = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * centres  # (N, G)
    y = boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * centres
    rows, columns = y[:, :, None].expand(-1, -1, side), x[:, None].expand(-1, side, -1)
    grid = 2 * torch.stack([columns, rows], -1) - 1  # (N, G, G, 2)
    image = table[1:].T.reshape(1, -1, side, side).expand(len(boxes), -1, -1, -1).float()
    found = grid_sample(image, grid.float(), mode="bilinear", padding_mode="border", align_corners=False)
    patches = found.flatten(2).transpose(1, 2).to(table.dtype)  # (N, G^2, width)
    return torch.cat([table[:1].expand(len(boxes), 1, -1), patches], 1)


def _sums(decoder: MammutText, tokens: Tensor, image: Tensor) -> Tensor:
    """`next_token_sums` (N, 2) of texts (N, L) that begin with the image's token."""
    targets = tokens.masked_fill(padding_of(tokens, decoder.pad_id), IGNORED)[:, 1:]
    return next_token_sums(decoder.next_token_logits(tokens[:, :-1], image), targets)
