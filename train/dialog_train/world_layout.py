"""Teaches the image tower of a CLIP of the world `shapes-2` what is where, before and during its contrastive training.

Web captions name a few things of an image, and the contrastive loss needs many of them to teach an image tower where
things are. As towers are trained on labelled images first, this one learns the objects in each cell of a scene, which
linear heads read off the image's embedding and off the patches' vectors, and for each color and shape where such
objects are, which a linear head reads off the embedding. So the difference between two places is linear in the
embedding, too: a text vector can say that one thing is left of another. The heads are dropped afterwards.
`WithLayoutLoss` adds their loss to the contrastive loss: with web captions alone, the tower would forget most of it.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from dialog_gen.clip.base import Clip
from dialog_gen.shapes.render import through_jpeg
from dialog_gen.shapes.second.render import render
from dialog_gen.shapes.second.scenes import CELL_PX, CELLS, COLORS, SHAPES, SIZES, TEXTURES, Scene, draw_scene
from dialog_train.data.pixel_set import Normalization

log = logging.getLogger(__name__)

_KINDS = [(color, shape) for color in COLORS for shape in SHAPES]
# One class more each: no object.
_CLASSES = [1 + len(_KINDS), 1 + len(TEXTURES), 1 + len(SIZES)]
# Most kinds are absent from most scenes, so this mean error is small: unweighted, it would hardly count beside the
# cross-entropies.
_PLACES_WEIGHT = 30.0
# The object in front, and the one behind it.
_LAYERS = 2
_SIDE = 3


def layout(scene: Scene) -> list[list[list[int]]]:
    """(cell, front or behind, attribute) -> class: 0 where there is no object, else 1 + the index of its value.

    The attributes are color and shape together, texture, and size.
    """
    found = [[[0] * len(_CLASSES) for _ in range(_LAYERS)] for _ in CELLS]
    for o in reversed(scene.objects):
        layers = found[CELLS.index(o.cell)]
        free = layers[0] if not any(layers[0]) else layers[1]
        free[:] = [1 + _KINDS.index((o.color, o.shape)), 1 + TEXTURES.index(o.texture), 1 + SIZES.index(o.size)]
    return found


def places(scene: Scene) -> list[list[float]]:
    """(color and shape) -> number of such objects, sums of their x and of their y in cells from the image's centre."""
    found = [[0.0, 0.0, 0.0] for _ in _KINDS]
    for o in scene.objects:
        x, y = (place / CELL_PX - _SIDE / 2 for place in o.center_px)
        kind = found[_KINDS.index((o.color, o.shape))]
        kind[:] = [kind[0] + 1, kind[1] + x, kind[2] + y]
    return found


class LayoutTargets(NamedTuple):
    """What heads are to read off N images."""

    cells: Tensor
    """(N, 9, 2, 3) int64: see `layout`."""
    places: Tensor
    """(N, 42, 3) float32: see `places`."""


def layout_targets(scenes: Sequence[Scene]) -> LayoutTargets:
    """The targets of the scenes."""
    return LayoutTargets(
        torch.tensor([layout(scene) for scene in scenes]), torch.tensor([places(scene) for scene in scenes])
    )


class ImageHeads(nn.Module):
    """Linear heads that read a scene's layout off the image's embedding."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.cells = nn.Linear(embed_dim, len(CELLS) * _LAYERS * sum(_CLASSES))
        self.places = nn.Linear(embed_dim, len(_KINDS) * 3)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) -> logits (N, 9, 2, C) of cells, `places` (N, 42, 3); C counts all classes.

        Of the embedding, only the direction is read, as in a similarity; the scale gives its entries a mean square of
        one, as linear layers expect.
        """
        image = normalize(image, dim=-1) * image.shape[-1] ** 0.5
        return self.cells(image).unflatten(1, (len(CELLS), _LAYERS, -1)), self.places(image).unflatten(1, (-1, 3))

    def loss(self, image: Tensor, targets: LayoutTargets) -> Tensor:
        """Of N embeddings (N, D), as a scalar."""
        cells, found = self(image)
        return _loss(cells, targets.cells) + _PLACES_WEIGHT * mse_loss(found, targets.places)


class WithLayoutLoss(nn.Module):
    """The module of contrastive training, on batches that have the tensors of `LayoutTargets`, and the heads' loss.

    The heads are not trained.
    """

    def __init__(self, towers: Any, heads: ImageHeads) -> None:
        super().__init__()
        self.towers, self.heads = towers, heads.requires_grad_(False)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """The system's losses, and `layout_loss`."""
        images: list[Tensor] = []
        with self.towers.visual.register_forward_hook(lambda _tower, _pixels, image: images.append(image)):
            losses = self.towers(batch)
        targets = LayoutTargets(batch.cells, batch.places)
        return {**losses, "layout_loss": self.heads.loss(torch.cat(images), targets)}


def teach_layout(
    clip: Clip, *, scene_seed: int, steps: int, batch_size: int = 32, lr: float = 1e-3, log_every: int = 100
) -> ImageHeads:
    """Trains the image tower, in place, on scenes of the train split; the text tower stays as it is. Returns the heads.

    The scenes have negative numbers, which the contrastive training does not use.
    """
    tower: Any = clip.model.visual  # type: ignore[union-attr]
    heads = ImageHeads(tower.output_dim)
    of_patches = nn.Linear(tower.conv1.out_channels, _LAYERS * sum(_CLASSES))
    normalization = Normalization(clip.preprocess_config)
    side = tower.image_size[0] // tower.patch_size[0]
    cell_of_patch = torch.tensor(
        [y * _SIDE // side * _SIDE + x * _SIDE // side for y in range(side) for x in range(side)]
    )
    parameters = [*tower.parameters(), *heads.parameters(), *of_patches.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=min(0.5, 100 / steps), div_factor=100
    )
    tower.output_tokens, total, started = True, 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        scenes = [draw_scene("train", scene_seed, -(step * batch_size + i)) for i in range(batch_size)]
        pixels = np.stack([np.asarray(through_jpeg(render(scene))) for scene in scenes])
        image, patches = tower(normalization(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        targets = layout_targets(scenes)
        of_patch = of_patches(patches).unflatten(2, (_LAYERS, -1))
        loss = heads.loss(image, targets) + _loss(of_patch, targets.cells[:, cell_of_patch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % log_every == 0:
            with torch.no_grad():
                cells, found = heads(image)
            log.info(
                "layout step %d/%d loss %.4f, %.1f %% of objects told by the embedding, error of places %.4f, %.0f s",
                step,
                steps,
                total / log_every,
                100 * _found(cells, targets.cells),
                mse_loss(found, targets.places).item(),
                time.perf_counter() - started,
            )
            total = 0.0
    tower.output_tokens = False
    return heads


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy over attributes. `logits` is (N, P, 2, C) and `wanted` (N, P, 2, 3); P: cells or patches."""
    parts = logits.split(_CLASSES, dim=-1)
    losses = [cross_entropy(part.flatten(0, 2), wanted[..., i].flatten()) for i, part in enumerate(parts)]
    return torch.stack(losses).mean()


def _found(logits: Tensor, wanted: Tensor) -> float:
    """Fraction of the objects whose attributes the largest logits all name, in their cell."""
    named = torch.stack([part.argmax(-1) for part in logits.split(_CLASSES, dim=-1)], dim=-1)
    there = wanted.any(-1)
    return float((named == wanted).all(-1)[there].float().mean())
