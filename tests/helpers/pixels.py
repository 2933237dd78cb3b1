"""Images so small that a step takes milliseconds, and trainings on them: their texts tell of their colors."""

from pathlib import Path
from typing import Any

import torch

from dialog_gen.clip.base import Clip
from dialog_train.config import OptimSettings
from dialog_train.data.pixel_set import PixelBatch, PixelBatches
from dialog_train.loop import FitResult, fit
from dialog_train.systems.clip.config import ClipRecipe
from dialog_train.systems.clip.training import ClipTraining
from helpers.loops import CONTEXT, VOCABULARY, make_clip, texts_of


class TinyPixels:
    """A pixel set in memory: 32 x 32 images of eight colors, with noise."""

    def __init__(self, rows: int = 50) -> None:
        self.config: dict[str, Any] = {"kind": "tiny"}
        self.has_dialogues = True
        generator = torch.Generator().manual_seed(1)
        colors = torch.randint(0, 200, (8, 3, 1, 1), generator=generator)
        noise = torch.randint(0, 55, (rows, 3, 32, 32), generator=generator)
        self.pixels = (colors[torch.arange(rows) % 8] + noise).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, rows: Any, epoch: int, *, dialogues: Any = None, full_length: bool = False) -> PixelBatch:
        order = [int(row) for row in rows]
        texts = [[1, 2 + row % 8, *[10 + row % 5] * (row % 3), VOCABULARY - 1] for row in order]
        pairs = [[1, 20 + epoch % 3, 30 + row % 8, VOCABULARY - 1] for row in order]
        least = CONTEXT if full_length else 0
        return PixelBatch(
            image_ids=[f"image-{row}" for row in order],
            pixels=self.pixels[order],
            captions=texts_of(texts, least),
            dialogues=texts_of(pairs, least) if dialogues else None,
        )


def make_clip_recipe(out: Path, **changes: Any) -> ClipRecipe:
    """Keys of `optim` or of the recipe itself."""
    optim = {"lr": 3e-3, "batch_size": 8, "epochs": 2, "warmup_steps": 3, "grad_clip": 1.0}
    optim |= {key: changes.pop(key) for key in list(changes) if key in OptimSettings.model_fields}
    data = {"images": "nowhere", "work": "nowhere", "crop_area": changes.pop("crop_area", 0.6)}
    content = {"model": "tiny", "out": out, "data": data, "optim": optim, "log": {"tensorboard": False}}
    return ClipRecipe.model_validate({**content, **changes})


def train_clip(out: Path, changes: dict[str, Any], clip: Clip | None = None, **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    recipe = make_clip_recipe(out, **changes)
    system = ClipTraining(clip or make_clip(), recipe)
    return fit(recipe, system, PixelBatches(recipe, TinyPixels(), full_length=system.sees_padding), **options)


def train_siglip(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    return train_clip(out, {**changes, "loss": "siglip"}, **options)


def train_lit(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    return train_clip(out, {**changes, "lock_image": True}, **options)
