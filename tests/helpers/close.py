"""A CLOSE training so small that a step takes milliseconds: the vector of a row tells which of eight colors it has."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.close.adapters import Adapter
from dialog_gen.clip.close.decoder import CloseDecoder
from dialog_train.config import OptimSettings
from dialog_train.loop import FitResult, fit
from dialog_train.systems.close.config import CloseRecipe, DecoderSettings
from dialog_train.systems.close.examples import Pair
from dialog_train.systems.close.texts import TextRow
from dialog_train.systems.close.training import CloseBatches, CloseTraining, new_decoder, training_texts
from helpers.loops import WIDTH, make_clip

COLORS = ("red", "blue", "green", "black", "white", "pink", "brown", "gray")
TINY = DecoderSettings(width=16, layers=1, heads=2)


def direction(color: int) -> torch.Tensor:
    """(D,), unit-norm: the vectors of a color lie around it."""
    return normalize(torch.randn(len(COLORS), WIDTH, generator=torch.Generator().manual_seed(7)), dim=-1)[color]


class ColorRows:
    def __init__(self, rows: int = 50) -> None:
        self.config: dict[str, Any] = {"kind": "colors"}
        noise = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
        self._vectors = [
            normalize(direction(row % 8) + 0.05 * noise[row], dim=-1).half().numpy() for row in range(rows)
        ]

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, row: int) -> TextRow:
        color = COLORS[row % 8]
        return TextRow(
            image_id=f"image-{row}",
            caption=f"a {color} thing",
            pairs=[Pair("What color is it?", color), Pair(f"Is it {color}?", "yes")],
            vectors={"caption": self._vectors[row], "dialogue": -self._vectors[row]},
        )


def make_close_recipe(out: Path, **changes: Any) -> CloseRecipe:
    """Keys of `optim` or of the recipe itself."""
    optim = {"lr": 3e-3, "batch_size": 8, "epochs": 2, "warmup_steps": 3, "grad_clip": 1.0}
    optim |= {key: changes.pop(key) for key in list(changes) if key in OptimSettings.model_fields}
    content = {"model": "tiny", "out": out, "data": {"dialogues": "nowhere", "work": "nowhere"}, "optim": optim}
    tasks = ["vqa", "captioning", "entailment"]
    return CloseRecipe.model_validate(
        {**content, "log": {"tensorboard": False}, "decoder": TINY.model_dump(), "tasks": tasks, **changes}
    )


def make_decoder(recipe: CloseRecipe, seed: int = 0) -> CloseDecoder:
    return new_decoder(recipe.decoder, WIDTH, training_texts(recipe, map(ColorRows().__getitem__, range(8))), seed)


def train_close(out: Path, changes: dict[str, Any], **options: Any) -> FitResult:
    """A trainer for `helpers.systems`."""
    recipe = make_close_recipe(out, **changes)
    return train_decoder(recipe, make_clip(), make_decoder(recipe), **options)


def train_decoder(
    recipe: CloseRecipe, clip: Clip, decoder: CloseDecoder, adapter: Adapter | None = None, **options: Any
) -> FitResult:
    adapter = adapter or Adapter()
    system = CloseTraining(clip, decoder, adapter, recipe)
    return fit(recipe, system, CloseBatches(recipe, ColorRows(), decoder, adapter), **options)
