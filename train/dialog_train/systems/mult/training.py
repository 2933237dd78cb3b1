"""MulT augmentation: a CLIP is trained together with a crossmodal transformer that fuses image and text (thesis, 4.2).

The fusion is used only in training. The result is a plain open_clip checkpoint with one more file:

    FOLDER/fusion.safetensors   the weights of `Fusion`
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.tokens import padding_of
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.tensors import save_tensors
from dialog_train.data.pixel_set import Normalization, PixelBatch
from dialog_train.losses.three_way import three_way_loss
from dialog_train.systems.clip.training import ClipTraining
from dialog_train.systems.mult.config import FusionSettings, MultRecipe, View

FUSION_FILE = "fusion.safetensors"
_CLIP_PREFIX, _FUSION_PREFIX = "clip.", "fusion."
_CHANNELS = 3


class CrossmodalBlock(nn.Module):
    """One layer of a crossmodal transformer (MulT, arXiv 1906.00295, section 3.2), from a source to a target modality.

    Z'    = MH(Q = LN(Z_target), K, V = LN(Z_source^0)) + LN(Z_target)
    Z_new = FFN(LN(Z')) + LN(Z')
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.target_norm = nn.LayerNorm(width)
        self.source_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, target: Tensor, source: Tensor, source_padding: Tensor | None) -> Tensor:
        """Target (N, L, width) attends to the source's layer-0 sequence (N, L', width), except its padding (N, L')."""
        queries, keys = self.target_norm(target), self.source_norm(source)
        attended, _ = self.attention(queries, keys, keys, key_padding_mask=source_padding, need_weights=False)
        hidden = self.feed_forward_norm(attended + queries)
        return self.feed_forward(hidden) + hidden


class Fusion(nn.Module):
    """Maps image patches and token embeddings to one vector, by crossmodal blocks in both directions.

    Both sequences are embedded linearly and get sinusoidal positions as in MulT. Each attends to the other; the results
    are averaged over their positions, concatenated and projected. MulT's final self-attention is left out, because the
    vector represents both whole sequences and not their last elements.
    """

    def __init__(self, settings: FusionSettings, token_width: int, joint_width: int) -> None:
        super().__init__()
        width, self._patch_size = settings.width, settings.patch_size
        self.patch_embedding = nn.Linear(_CHANNELS * settings.patch_size**2, width)
        self.token_projection = nn.Linear(token_width, width)
        self.image_from_text, self.text_from_image = (
            nn.ModuleList(CrossmodalBlock(width, settings.heads) for _ in range(settings.layers)) for _ in range(2)
        )
        self.projection = nn.Linear(2 * width, joint_width, bias=False)

    def forward(self, pixels: Tensor, tokens: Tensor, padding: Tensor, view: View) -> Tensor:
        """Normalised pixels (N, 3, H, W), token embeddings (N, L, token width), padding (N, L) -> (N, joint width)."""
        image0 = _with_positions(self.patch_embedding(patches(pixels, self._patch_size, view)))
        text0 = _with_positions(self.token_projection(tokens))
        image, text = image0, text0
        for block in self.image_from_text:
            image = block(image, text0, padding)
        for block in self.text_from_image:
            text = block(text, image0, None)
        kept = (~padding).unsqueeze(-1).to(text.dtype)
        pooled = [image.mean(1), (text * kept).sum(1) / kept.sum(1)]
        return self.projection(torch.cat(pooled, -1))


class MultTraining:
    """A `System` that trains the towers of `clip` in place, together with a new `Fusion`, by `three_way_loss`."""

    def __init__(self, clip: Clip, recipe: MultRecipe) -> None:
        """Raises UsageError for towers that `ClipTraining` refuses, or if the patch size does not divide the images."""
        self._towers = ClipTraining(clip, recipe)
        self.name = clip.name
        self.fingerprint: dict[str, Any] = self._towers.fingerprint
        towers = _Towers(self._towers, recipe)
        self.model: nn.Module = towers
        self.module: nn.Module = towers
        self.logit_scale: nn.Parameter | None = self._towers.logit_scale
        self.trainable = {name: p for name, p in towers.named_parameters() if p.requires_grad}
        self.may_leave_parameters_unused = self._towers.may_leave_parameters_unused
        self._fusion = towers.fusion

    @property
    def sees_padding(self) -> bool:
        """Whether texts must be padded to the model's full context length."""
        return self._towers.sees_padding

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes the checkpoint folder that the module's docstring describes; the model's weights come last."""
        fusion = {**self._fusion.state_dict(), **_under(_FUSION_PREFIX, changed)}
        save_tensors(fusion, folder / FUSION_FILE)
        self._towers.save(folder, _under(_CLIP_PREFIX, changed))


class _Towers(nn.Module):
    def __init__(self, towers: ClipTraining, recipe: MultRecipe) -> None:
        super().__init__()
        self.clip: Any = towers.model
        self.text = towers.tower
        self.normalization = Normalization(towers.clip.preprocess_config)
        self.token_embedding = _token_embedding(towers.tower)
        _check_patches(self.clip.visual.image_size, recipe.fusion.patch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.fusion = Fusion(recipe.fusion, self.token_embedding.embedding_dim, towers.clip.config["embed_dim"])
        self._views, self._weights = recipe.fusion.views, recipe.weights

    def forward(self, batch: PixelBatch) -> dict[str, Tensor]:
        pixels, tokens = self.normalization(batch.pixels), batch.captions.tokens
        images, (texts,) = self.clip.visual(pixels), self.text(batch.captions)
        embedded, padding = self.token_embedding(tokens), padding_of(tokens, self.text.pad_id)
        fused = [self.fusion(pixels, embedded, padding, view) for view in self._views]
        # Mixed precision is for the towers only; losses need full float32.
        with torch.autocast(texts.device.type, enabled=False):
            image, text, *fused = (normalize(rows.float(), dim=-1) for rows in (images, texts, *fused))
            return three_way_loss(image, text, fused, self.clip.logit_scale.exp(), **self._weights.model_dump())


def patches(pixels: Tensor, size: int, view: View) -> Tensor:
    """(N, C, H, W) -> (N, M, C size^2): the M = HW / size^2 square patches of each image, row by row or by columns."""
    count, channels, height, width = pixels.shape
    grid = pixels.reshape(count, channels, height // size, size, width // size, size)
    order = (0, 2, 4, 1, 3, 5) if view == "rows" else (0, 4, 2, 1, 3, 5)
    return grid.permute(order).reshape(count, -1, channels * size**2)


def _with_positions(sequence: Tensor) -> Tensor:
    """Adds the sinusoidal positional embedding (arXiv 1706.03762, section 3.5) to (N, L, width)."""
    _, length, width = sequence.shape
    places = torch.arange(length, device=sequence.device).unsqueeze(-1)
    frequencies = torch.exp(torch.arange(0, width, 2, device=sequence.device) * (-math.log(10_000) / width))
    angles = places * frequencies
    return sequence + torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).to(sequence.dtype)


def _token_embedding(tower: TextTower) -> nn.Embedding:
    """The text tower's own embedding table: the fusion shares it, and both train it."""
    return tower.token_embedding if tower.is_native else tower.text.transformer.get_input_embeddings()


def _check_patches(image_size: int | tuple[int, int], patch_size: int) -> None:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if height % patch_size or width % patch_size:
        raise UsageError(
            f"fusion.patch_size = {patch_size} does not divide the model's images of {height} x {width} pixels: "
            "choose one that does."
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
