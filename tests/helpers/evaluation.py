"""A small split of the embedded world on disk, two models for it, and what they should be found to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from dialog_gen.clip.loader import load_clip, save_clip
from dialog_gen.shapes.files import ShapesSubset, write_files
from helpers.training import write_tiny_clip

IMAGES = 12
SUBSET = ShapesSubset(split="test", seed=0, limit=IMAGES, shard_size=8)


def write_split(root: Path, subset: ShapesSubset = SUBSET) -> Path:
    """`root`/images with a PNG a scene, and the files of the tasks."""
    write_files(root, subset)
    for index in range(subset.limit):
        path = image_path(root, subset, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(subset.world.render_png(subset.scene(index)))
    return root


def image_path(root: Path, subset: ShapesSubset, index: int) -> Path:
    return root / "images" / f"{subset.image_id(index)}.png"


def vqa_files(root: Path, prefix: str = "MultipleChoice") -> list[str]:
    return [str(root / "vqa" / f"{prefix}_shapes_test_questions.json"), annotations(root)]


def annotations(root: Path) -> str:
    return str(root / "vqa" / "shapes_test_annotations.json")


def captions(root: Path) -> str:
    return str(root / "retrieval" / "captions_shapes_test.json")


def write_clips(root: Path) -> tuple[Path, Path]:
    """Checkpoints "base" and "tuned": of one image tower, and with vectors that are far from one another."""
    base = change_clip(write_tiny_clip(root / "random", seed=0), root / "base", seed=1, images=True)
    return base, change_clip(base, root / "tuned", seed=2)


def change_clip(source: Path, out: Path, seed: int, *, images: bool = False) -> Path:
    """The same with other weights in its text tower, and in its image tower if asked."""
    clip = load_clip(str(source))
    rng = torch.Generator().manual_seed(seed)
    state = {
        name: value + 0.3 * torch.randn(value.shape, generator=rng)
        if images or not name.startswith(("visual.", "logit_scale"))
        else value
        for name, value in clip.model.state_dict().items()
    }
    save_clip(clip, out, state)
    return out


class ReferenceModel:
    """open_clip's own methods on padded tokens, an image and a text at a time, in float64."""

    def __init__(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        clip = load_clip(str(folder))
        if state is not None:
            clip.model.load_state_dict(state)
        self.model, self.tokenizer, self.preprocess = clip.model.double(), clip.tokenizer, clip.preprocess
        self._known: dict[str, Tensor] = {}

    def texts(self, texts: Sequence[str]) -> Tensor:
        for text in texts:
            if text not in self._known:
                with torch.no_grad():
                    self._known[text] = normalize(self.model.encode_text(self.tokenizer([text]))[0], dim=-1)
        return torch.stack([self._known[text] for text in texts])

    def images(self, paths: Sequence[Path]) -> Tensor:
        pixels = [self.preprocess(Image.open(path).convert("RGB"))[None].double() for path in paths]
        with torch.no_grad():
            return normalize(torch.cat([self.model.encode_image(some) for some in pixels]), dim=-1)


def blended_state(base: Path, tuned: Path, beta: float) -> dict[str, Any]:
    """Text weights by hand: image towers are equal, and `logit_scale` changes no order."""
    first, second = (load_clip(str(folder)).model.state_dict() for folder in (base, tuned))
    return {name: beta * first[name] + (1 - beta) * second[name] for name in first}
