"""The training system of CLOSE and its data."""

import hashlib
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.base import Clip, WritingTask
from dialog_gen.clip.close.adapters import Adapter, fit_adapter
from dialog_gen.clip.close.checkpoint import new_close
from dialog_gen.clip.close.decoder import CloseDecoder, load_t5, new_t5, word_tokenizer
from dialog_gen.clip.loader import save_clip
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.tensors import sha256_of_weights
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.data.prepare import prepare_vectors
from dialog_train.data.training_set import EpochOrder, columns_of
from dialog_train.data.vectors import VectorStore
from dialog_train.losses.next_token import IGNORED, next_token_loss, next_token_sums
from dialog_train.processes import gather_rows
from dialog_train.system import Share, to_device
from dialog_train.systems.close.config import CloseRecipe, DecoderSettings
from dialog_train.systems.close.examples import (
    Example,
    captioning_example,
    entailment_example,
    vqa_example,
    wrong_answer,
)
from dialog_train.systems.close.texts import TextRow, Texts, build_texts, matrix

# Number of other images that are searched for a wrong answer.
_CANDIDATES = 64


def new_decoder(settings: DecoderSettings, width: int, texts: Iterable[str], seed: int) -> CloseDecoder:
    """The initial decoder of a training, for CLIP vectors of `width` dimensions.

    `texts` are used to build the tokenizer of a decoder that is not pretrained. Random weights are drawn from `seed`.
    Raises UsageError for a pretrained model that cannot be loaded or is not a T5.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.name is not None:
            t5, tokenizer = load_t5(settings.name, settings.revision)
        else:
            tokenizer = word_tokenizer(texts)
            shape = settings.model_dump(include={"width", "layers", "heads", "dropout"})
            t5 = new_t5(tokenizer, **shape)
        return CloseDecoder(t5, tokenizer, width, settings.prefix_vectors)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseBatch:
    """A batch of N examples."""

    image_ids: list[str]
    vectors: Tensor
    """(N, D) float32, unit-norm: text vectors after adapter and noise."""
    prompts: Tensor
    """(N, L) int64, padded to the longest of the batch."""
    targets: Tensor
    """(N, T) int64, IGNORED in place of padding."""
    cut: float
    """Share (0 to 1) of prompts and targets that were truncated."""

    def to(self, device: torch.device) -> "CloseBatch":
        """A copy with its tensors on `device`."""
        return to_device(self, device)

    def statistics(self) -> dict[str, float]:
        """The values that are logged for each batch."""
        return {"truncated_texts": self.cut}


class CloseTraining:
    """A `System` that trains a decoder in place. CLIP is not called: the batches contain its vectors."""

    logit_scale: nn.Parameter | None = None
    may_leave_parameters_unused = False

    def __init__(self, clip: Clip, decoder: CloseDecoder, adapter: Adapter, recipe: CloseRecipe) -> None:
        self.name = f"CLOSE on {clip.name}"
        self.model: nn.Module = decoder
        self.module: nn.Module = _Trainee(decoder)
        self.trainable = dict(decoder.named_parameters())
        self._close = new_close(
            clip,
            decoder,
            adapter,
            reference=recipe.model_dump(include={"model", "pretrained", "allow_activation_mismatch"}),
            recipe=recipe.model_dump(mode="json", include={"tasks", "context", "noise", "adapter"}),
        )
        self.fingerprint: dict[str, Any] = {
            "weights_sha256": clip.weights_sha256,
            "decoder_sha256": sha256_of_weights(decoder.state_dict()),
        }

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """Writes a folder that loads as a `CloseClip`."""
        save_clip(self._close, folder, changed)


class _Trainee(nn.Module):
    def __init__(self, decoder: CloseDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, batch: CloseBatch) -> dict[str, Tensor]:
        sums = next_token_sums(self.decoder(batch.vectors, batch.prompts, batch.targets), batch.targets)
        return {"text_loss": next_token_loss(gather_rows(sums))}


class CloseRows(Protocol):
    """The part of `Texts` that `CloseBatches` uses."""

    config: dict[str, Any]

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> TextRow: ...


class CloseBatches:
    """`Data` with one example per image and epoch.

    An image with E examples uses each of them once in E epochs. Noise and wrong answers are determined by seed and
    step.
    """

    def __init__(self, recipe: CloseRecipe, rows: CloseRows, decoder: CloseDecoder, adapter: Adapter) -> None:
        """Raises UsageError for a batch that is larger than the data."""
        self._recipe, self._rows, self._decoder, self._adapter = recipe, rows, decoder, adapter
        self._root = adapter.noise_root(recipe.noise)
        self._order = EpochOrder(len(rows), recipe.optim.batch_size, recipe.seed)
        self.steps_per_epoch = self._order.steps_per_epoch
        self.fingerprint: dict[str, Any] = {
            "rows": len(rows),
            "config_sha256": sha256_json(rows.config),
            "adapter_sha256": sha256_of_weights(adapter.tensors()),
        }

    def batch(self, step: int, share: Share) -> CloseBatch:
        """A process's share of the batch of a step, as `Data` describes."""
        epoch, chosen = self._order.rows(step, share)
        rows = [self._rows[row] for row in chosen.tolist()]
        examples = [self.example(row, epoch) for row in rows]
        vectors = [
            row.vectors["caption" if example.task == "captioning" else self._recipe.context]
            for row, example in zip(rows, examples, strict=True)
        ]
        # Rounding to float16 left the norms slightly off one.
        texts = normalize(torch.from_numpy(np.stack(vectors).astype(np.float32)), dim=-1)
        settings, size = self._recipe.decoder, self._recipe.optim.batch_size
        # Drawn for the whole batch, so that the noise does not depend on the number of processes.
        normal = self._normal(step, size, texts.shape[1])[columns_of(share.rank, share.world_size, size)]
        prompts, cut = self._decoder.token_ids([e.prompt for e in examples], settings.max_prompt_tokens)
        targets, more = self._decoder.token_ids([e.target for e in examples], settings.max_target_tokens)
        return CloseBatch(
            image_ids=[row.image_id for row in rows],
            vectors=self._adapter(texts, normal, self._root),
            prompts=prompts,
            targets=targets.masked_fill(targets == self._decoder.pad_id, IGNORED),
            cut=(cut + more) / (2 * len(examples)),
        )

    def example(self, row: TextRow, epoch: int) -> Example:
        """The example of an image that is used in `epoch`."""
        choices = _choices(self._recipe, row)
        turn = epoch + zlib.crc32(row.image_id.encode())
        task, number = choices[turn % len(choices)]
        if task == "captioning":
            return captioning_example(row.caption)
        pair = row.pairs[number]
        if task == "vqa":
            return vqa_example(pair)
        rng = random.Random(f"entailment/{self._recipe.seed}/{epoch}/{row.image_id}")
        if rng.random() < 0.5:
            return entailment_example(pair, None)
        others = (rng.choice(self._rows[rng.randrange(len(self._rows))].pairs) for _ in range(_CANDIDATES))
        # Without a wrong answer, the statement remains the true one.
        return entailment_example(pair, wrong_answer(pair, others))

    def _normal(self, step: int, rows: int, width: int) -> Tensor:
        seed = hashlib.sha256(f"noise/{self._recipe.seed}/{step}".encode()).digest()[:7]
        return torch.randn(rows, width, generator=torch.Generator().manual_seed(int.from_bytes(seed)))


def prepare_texts(
    recipe: CloseRecipe, clip: Clip, accelerator: Accelerator, on_progress: OnProgress = ignore_progress
) -> tuple[Texts, Adapter]:
    """Computes missing text vectors and, for an adapter, image vectors, in one process while the others wait.

    Raises what `build_texts`, `embed_dataset` and `fit_adapter` raise.
    """
    images, texts = recipe.data.work / "vectors", recipe.data.work / "texts"
    if accelerator.is_main_process:
        dataset = DatasetFolder.existing(recipe.data.dialogues)
        if recipe.adapter != "none":
            prepare_vectors(dataset, clip, images, str(accelerator.device), on_progress)
        build_texts(dataset, clip, texts, kept_only=recipe.data.kept_only, device=accelerator.device)
    accelerator.wait_for_everyone()
    found = Texts(texts)
    return found, fitted_adapter(recipe, found, None if recipe.adapter == "none" else VectorStore(images))


def training_texts(recipe: CloseRecipe, rows: Iterator[TextRow]) -> Iterator[str]:
    """Yields all texts that the decoder can read or write; a word tokenizer is built from them."""
    for row in rows:
        if "captioning" in recipe.tasks:
            yield from captioning_example(row.caption)
        for pair in row.pairs:
            if "vqa" in recipe.tasks:
                yield from vqa_example(pair)
            if "entailment" in recipe.tasks:
                yield from entailment_example(pair, None)
                yield from entailment_example(pair, pair.answer)


def fitted_adapter(recipe: CloseRecipe, texts: Texts, images: VectorStore | None) -> Adapter:
    """The recipe's adapter, fitted to context and image vectors. `images` may be None only for the kind "none"."""
    if images is None:
        return Adapter(kind="none")
    return fit_adapter(recipe.adapter, _paired(recipe, texts, images))


def _paired(recipe: CloseRecipe, texts: Texts, images: VectorStore) -> Iterator[tuple[Tensor, Tensor]]:
    for shard, image_ids, vectors in texts.vectors(recipe.context):
        stored = images.read(shard)
        place = {image_id: row for row, image_id in enumerate(stored["image_id"].to_pylist())}
        there = [row for row, image_id in enumerate(image_ids) if image_id in place]
        yield vectors[there], matrix(stored["vector"])[[place[image_ids[row]] for row in there]]


def _choices(recipe: CloseRecipe, row: TextRow) -> list[tuple[WritingTask, int]]:
    return [(task, number) for task in recipe.tasks for number in range(1 if task == "captioning" else len(row.pairs))]
