"""A CLIP and dialogues datasets that are small enough to be made in a moment."""

import functools
import random
from pathlib import Path
from typing import Any

import open_clip
import torch

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import save_clip
from dialog_gen.core.tensors import sha256_of_weights
from dialog_gen.dataset.writer import open_writer
from dialog_gen.shapes.language import ask, web_caption
from dialog_gen.shapes.render import render_png
from dialog_gen.shapes.scenes import draw_scene
from helpers.inputs import sha256
from helpers.rows import make_row, shard_of, write_shard

TINY_CLIP: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": False,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TINY_SHARDS = {"a": 20, "b": 20, "c": 8}


@functools.cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=24)


def write_tiny_clip(folder: Path, seed: int) -> Path:
    """A checkpoint with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**TINY_CLIP).eval()
    clip = Clip(
        model=model,
        preprocess=None,
        tokenizer=_tokenizer(),
        name="tiny",
        config=TINY_CLIP,
        preprocess_config={"size": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"},
        weights_sha256=sha256_of_weights(model.state_dict()),
    )
    save_clip(clip, folder)
    return folder


def scene_row(number: int, **columns: Any) -> dict[str, Any]:
    """A complete record about a drawn scene, three questions of it and a web caption."""
    scene = draw_scene("train", 0, number)
    rng = random.Random(number)
    data = render_png(scene)
    row = {
        "image_sha256": sha256(data),
        "images": [{"bytes": data, "path": f"{number}.png"}],
        "caption": web_caption(scene, rng),
        "texts": [{"user": q.question, "assistant": q.answer} for q in ask(scene, rng, 3)],
    }
    return make_row(number, **(row | columns))


def write_dialogues(out: Path, shards: dict[str, list[dict[str, Any]]], *, made_by: str = "test") -> Path:
    """A dataset folder of these rows, as `dialog-gen run` leaves it."""
    stated = any("statements" in row for some in shards.values() for row in some)
    with open_writer(str(out), {"made_by": made_by} | ({"statements": True} if stated else {})) as store:
        for name, rows in shards.items():
            write_shard(store, shard_of(name, len(rows)), rows)
    return out


def write_recipe(
    folder: Path,
    model: Path | str,
    dialogues: Path,
    *,
    top: str = "",
    optim: str = "max_steps = 3",
    tables: str = "",
) -> Path:
    """`folder`/recipe.toml of a training that takes a moment; `top`, `optim` and `tables` are lines of TOML."""
    file = folder / "recipe.toml"
    file.write_text(
        f"""
model = {str(model)!r}
out = "out"
{top}
[data]
dialogues = {str(dialogues)!r}
work = "work"
[optim]
lr = 1e-3
batch_size = 8
{optim}
[log]
tensorboard = false
{tables}
"""
    )
    return file
