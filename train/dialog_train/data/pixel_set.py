"""Images as pixels, with captions and dialogues: the batches of objectives that train an image tower."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, resized_crop

from dialog_gen.clip.text.texts import Texts
from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_train.config import DialogueUse, PixelRecipe
from dialog_train.data.derived import CONFIG_FILE, read_json
from dialog_train.data.row_files import RowFiles
from dialog_train.data.stores import MappedStore, captions_of, dialogues_of
from dialog_train.data.token_batches import LazyStrings, TokenBatches
from dialog_train.data.training_set import EpochOrder, TrainingSetSummary, columns_of
from dialog_train.system import Share, pinned, share_of_repeated, to_device

KIND = "pixel set"
PART = "rows"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelBatch:
    """N images, each with a caption and, on request, a dialogue."""

    image_ids: Sequence[str]
    pixels: Tensor
    """(N, 3, H, W) uint8, resized for the model; `Normalization` turns them into the model's input."""
    captions: Texts
    """N texts, padded to the longest of the batch."""
    dialogues: Texts | None
    """N texts, padded to the longest of the batch."""
    position_boxes: Tensor | None = None
    """(N, 4) float32: x1, y1, x2, y2 of the regions whose positions the image tower uses, from 0 to 1; see
    `mammut.training.cropped_positions`."""

    def to(self, device: torch.device) -> "PixelBatch":
        """A copy with its tensors on `device`."""
        return to_device(self, device)

    def statistics(self) -> dict[str, float | Tensor]:
        """`duplicate_captions`: share (0 to 1) of captions that another image of the batch has too: false negatives."""
        return {"duplicate_captions": share_of_repeated(self.captions.tokens)}


class Normalization(nn.Module):
    """Pixels (N, 3, H, W) uint8 -> the image tower's input, normalised float32, on the pixels' device."""

    def __init__(self, preprocess_config: dict[str, Any]) -> None:
        super().__init__()
        config = PreprocessCfg(**preprocess_config)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 3, H, W) float32."""
        return (pixels.float() / 255 - self.mean) / self.std


class PixelRows(Protocol):
    """The part of `PixelSet` that `PixelBatches` uses."""

    config: dict[str, Any]
    has_dialogues: bool

    def __len__(self) -> int: ...
    def batch(
        self, rows: Any, epoch: int, *, dialogues: DialogueUse | None = None, full_length: bool = False
    ) -> PixelBatch:
        """The pixels and texts of the given rows."""
        ...


class PixelSet:
    """Random access to the rows of a pixel set. Raises UsageError if there is no finished pixel set."""

    def __init__(self, out: Path) -> None:
        self.summary = TrainingSetSummary(**read_json(out / SUMMARY_FILE, KIND))
        self.config = read_json(out / CONFIG_FILE, KIND)
        # Building compares it, unlike the location.
        self.has_dialogues = "dialogues_config_sha256" in self.config
        self._tokens = TokenBatches(self.config["tokenizer"])
        self.pins = False
        """Whether batches are in pinned memory, from which they are copied to a GPU without waiting."""
        self._shape: tuple[int, ...] = tuple(self.config["shape"])
        self._files = RowFiles(out / PART, self.summary.shards, "pixels", self._shape)
        # With 64 bits, the chance of a collision among three million images is about one in four million.
        _, first = np.unique(self._files.numbers("image_hash"), return_index=True)
        self._rows: npt.NDArray[np.int64] = np.sort(first)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(
        self,
        rows: Sequence[int] | npt.NDArray[Any],
        epoch: int,
        *,
        dialogues: DialogueUse | None = None,
        full_length: bool = False,
    ) -> PixelBatch:
        """The given rows as a batch.

        `dialogues` selects the QA pair of this epoch, all pairs joined, or none. `full_length` pads to the model's
        context length, for text towers that see the padding. Raises IndexError for a row that does not exist.
        """
        of = self._files.at(self._rows[rows])
        source = self._files, MappedStore(self._files), self._tokens, of
        pairs = None
        if dialogues:
            pairs = dialogues_of(*source, epoch, concatenate=dialogues == "concatenate", full_length=full_length)
        batch = PixelBatch(
            image_ids=LazyStrings(len(of.piece), lambda: self._files.image_ids(of)),
            pixels=torch.from_numpy(self._files.images(of)),
            captions=captions_of(*source, full_length=full_length),
            dialogues=pairs,
        )
        return pinned(batch) if self.pins else batch


class PixelBatches:
    """`Data` of a pixel set, in a new order every epoch."""

    def __init__(
        self, recipe: PixelRecipe, rows: PixelRows, *, dialogues: DialogueUse | None = None, full_length: bool
    ) -> None:
        """Raises UsageError for a batch that is larger than the data, or if the data lacks the required dialogues."""
        if dialogues and not rows.has_dialogues:
            raise UsageError("this objective needs dialogues: give data.dialogues instead of data.images.")
        self._rows, self._full_length = rows, full_length
        self._dialogues: DialogueUse | None = dialogues
        self._crop_area, self._seed, self._batch_size = recipe.data.crop_area, recipe.seed, recipe.optim.batch_size
        self._order = EpochOrder(len(rows), self._batch_size, recipe.seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.fingerprint: dict[str, Any] = {"rows": len(rows), "config_sha256": sha256_json(rows.config)}

    def batch(self, step: int, share: Share) -> PixelBatch:
        """A process's share of the batch of a step, as `Data` describes."""
        epoch, chosen = self._order.rows(step, share)
        batch = self._rows.batch(chosen, epoch, dialogues=self._dialogues, full_length=self._full_length)
        if self._crop_area == 1:
            return batch
        # Drawn for the whole batch, so that an image's crop does not depend on the process that handles it.
        draws = np.random.default_rng([self._seed, step]).random((self._batch_size, 3))
        mine = columns_of(share.rank, share.world_size, self._batch_size)
        return replace(batch, pixels=random_crops(batch.pixels, draws[mine], self._crop_area))


def random_crops(pixels: Tensor, draws: npt.NDArray[np.float64], least_area: float) -> Tensor:
    """Takes a random crop of each image and resizes it: (N, 3, H, W) uint8 -> (N, 3, H, W) uint8.

    `draws` (N, 3), uniform in [0, 1), determine a crop's share of the area, from `least_area` to 1, and its x and y
    position.
    """
    height, width = pixels.shape[-2:]
    crops: list[Tensor] = []
    for image, (area, x, y) in zip(pixels, draws.tolist(), strict=True):
        side = math.sqrt(least_area + (1 - least_area) * area)
        rows, columns = max(1, round(side * height)), max(1, round(side * width))
        top, left = round(y * (height - rows)), round(x * (width - columns))
        crops.append(resized_crop(image, top, left, rows, columns, [height, width], InterpolationMode.BICUBIC))
    return torch.stack(crops)
