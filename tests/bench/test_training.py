"""Pairs/s of DRAFT's trainer against a plain open_clip loop and open_clip's own script: `make bench`.

The size is that of ViT-B/32, with random weights.
Figures are printed; see docs/performance.md.
"""

import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from helpers.inputs import sha256
from helpers.rows import make_row
from helpers.training import write_dialogues
from PIL import Image
from torch import Tensor

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip, save_clip
from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.tensors import sha256_of_weights
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.data.training_set import Batch, TrainingSet, build_training_set, epoch_batches
from dialog_train.data.vectors import VectorStore, embed_dataset
from dialog_train.loop import fit
from dialog_train.losses import draft_loss, mmd2_rbf
from dialog_train.systems.draft import DraftLossSettings, DraftRecipe, draft_objective
from dialog_train.text_tuning import PairBatches, TextTuning

pytestmark = [pytest.mark.bench, pytest.mark.slow]

BATCH, STEPS, ROWS = 64, 3, 128
LOSS = DraftLossSettings().model_dump()
# Tokens of CC3M's captions and of LLaVA's question-answer pairs, start and end included: mean, spread, most.
CAPTION_TOKENS, DIALOGUE_TOKENS = (14, 5, 50), (24, 7, 77)
# One token each.
WORDS = ("a", "the", "man", "woman", "dog", "sits", "stands", "on", "red", "blue", "old", "new", "tree", "house", "sky")


def words(rng: random.Random, tokens: tuple[int, int, int]) -> list[str]:
    mean, spread, most = tokens
    return rng.choices(WORDS, k=min(max(5, round(rng.gauss(mean, spread))), most) - 2)


def photo(number: int) -> bytes:
    """A JPEG of the size that CC3M's images are stored in."""
    coarse = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(coarse).resize((340, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def row(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    pair = words(rng, DIALOGUE_TOKENS)
    data = photo(number)
    return make_row(
        number,
        image_sha256=sha256(data),
        images=[{"bytes": data, "path": f"{number}.jpg"}],
        caption=" ".join(words(rng, CAPTION_TOKENS)),
        texts=[{"user": " ".join(pair[:-3]), "assistant": " ".join(pair[-3:])}],
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model, _, _ = open_clip.create_model_and_transforms("ViT-B-32")
    config: Any = open_clip.get_model_config("ViT-B-32")
    clip = Clip(
        model=model,
        preprocess=None,
        tokenizer=open_clip.get_tokenizer("ViT-B-32"),
        name="ViT-B-32",
        config=config,
        preprocess_config=open_clip.get_model_preprocess_cfg(model),
        weights_sha256=sha256_of_weights(model.state_dict()),
    )
    folder = tmp_path_factory.mktemp("clip") / "random"
    save_clip(clip, folder)
    return folder


@pytest.fixture(scope="module")
def training_set(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    work = tmp_path_factory.mktemp("work")
    dataset = DatasetFolder.existing(str(write_dialogues(work / "set", {"a": [row(n) for n in range(ROWS)]})))
    clip = load_clip(str(checkpoint))
    embed_dataset(dataset, clip, work / "vectors")
    build_training_set(dataset, VectorStore(work / "vectors"), clip, work / "rows")
    return TrainingSet(work / "rows")


def batches(training_set: TrainingSet) -> Iterator[tuple[Batch, list[int]]]:
    """As the trainer takes them."""
    for epoch in itertools.count():
        for rows in epoch_batches(len(training_set), BATCH, 0, epoch):
            batch = training_set.batch(rows, epoch, concatenate=False, full_length=True)
            yield batch, [int(image_id.split()[-1]) for image_id in batch.image_ids]


def plain_steps(clip: Clip, training_set: TrainingSet, *, cached_images: bool) -> float:
    """Seconds a step of the loop that one writes with open_clip: a locked image tower and texts of 77 tokens."""
    model = clip.model.train()
    model.lock_image_tower()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    took: list[float] = []
    for batch, numbers in itertools.islice(batches(training_set), STEPS):
        began = time.perf_counter()
        images = batch.image_vectors
        if not cached_images:
            pixels = torch.stack([clip.preprocess(Image.open(BytesIO(photo(n)))) for n in numbers])
            with torch.no_grad():
                images = model.encode_image(pixels, normalize=True)
        captions = model.encode_text(batch.captions.tokens, normalize=True)
        dialogues = model.encode_text(batch.dialogues.tokens, normalize=True)
        loss = sum(draft_loss(images, captions, dialogues, model.logit_scale.exp(), **LOSS).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def trainer_steps(checkpoint: Path, training_set: TrainingSet, out: Path, *, caption_only: bool = False) -> float:
    """Seconds a step of `train/draft.py`'s loop, from one step's end to the next one's.

    With `caption_only`, its loss is that of open_clip's script: contrastive, of one text an image.
    """
    recipe = DraftRecipe.model_validate(
        {
            "model": str(checkpoint),
            "out": out,
            "data": {"dialogues": "", "work": ""},
            "optim": {"lr": 1e-5, "batch_size": BATCH, "max_steps": STEPS},
            "log": {"tensorboard": False},
        }
    )
    ends: list[float] = []
    objective = draft_objective(recipe.loss, caption_only=caption_only)
    system = TextTuning(load_clip(str(checkpoint)), objective, recipe.optim)
    data = PairBatches(recipe, training_set, full_length=system.sees_padding)
    fit(recipe, system, data, on_step=lambda *_: ends.append(time.perf_counter()))
    return min(b - a for a, b in itertools.pairwise(ends))


def script_steps(folder: Path) -> float:
    """Seconds a step of open_clip's own training script: a locked image tower, and one text of 77 tokens an image."""
    folder.mkdir()
    lines = ["filepath\ttitle"]
    for number in range(BATCH * STEPS):
        image = folder / f"{number}.jpg"
        image.write_bytes(photo(number))
        lines.append(f"{image}\t{row(number)['caption']}")
    (folder / "pairs.tsv").write_text("\n".join(lines))
    options = {
        "model": "ViT-B-32", "train-data": folder / "pairs.tsv", "dataset-type": "csv", "batch-size": BATCH,
        "epochs": 1, "lr": 1e-5, "warmup": 0, "workers": 1, "precision": "fp32", "device": "cpu",
        "log-every-n-steps": 1, "logs": folder / "logs", "save-frequency": 0,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    ended = subprocess.run(
        [sys.executable, "-m", "open_clip_train.main", *flags, "--lock-image"],
        capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    took = [float(seconds) for seconds in re.findall(r"Batch \(t\): ([0-9.]+)", ended.stderr + ended.stdout)]
    assert len(took) == STEPS, ended.stderr[-2000:]
    return min(took[1:])


def seconds_of(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def test_the_trainer_against_a_plain_open_clip_loop(
    checkpoint: Path, training_set: TrainingSet, tmp_path: Path
) -> None:
    batch, _ = next(batches(training_set))
    tokens = [(t != 0).sum(1).float().mean().item() for t in (batch.captions.tokens, batch.dialogues.tokens)]
    assert tokens == pytest.approx([CAPTION_TOKENS[0], DIALOGUE_TOKENS[0]], rel=0.1)

    plain = plain_steps(load_clip(str(checkpoint)), training_set, cached_images=False)
    cached = plain_steps(load_clip(str(checkpoint)), training_set, cached_images=True)
    trainer = trainer_steps(checkpoint, training_set, tmp_path / "out")
    captions = trainer_steps(checkpoint, training_set, tmp_path / "captions", caption_only=True)
    script = script_steps(tmp_path / "script")
    scalars = [torch.rand(1024, 1024).mul(2).sub(1).requires_grad_() for _ in range(2)]
    mmd = min(seconds_of(lambda: mmd2_rbf(scalars[0], scalars[1], 0.2).backward()) for _ in range(3))
    # A step grows with N at least in proportion.
    share = mmd / (trainer * 1024 / BATCH)
    print(
        f"\n{tokens[0]:.1f} + {tokens[1]:.1f} tokens on average; pairs/s: plain {BATCH / plain:.2f}; cached images "
        f"{BATCH / cached:.2f}, x {plain / cached:.2f}; unpadded too {BATCH / trainer:.2f}, x {cached / trainer:.2f}; "
        f"x {plain / trainer:.2f}; open_clip's script, captions only, {BATCH / script:.2f}, x {script / trainer:.2f}; "
        f"the trainer with captions only {BATCH / captions:.2f}, x {script / captions:.2f}. "
        f"mmd2_rbf at N = 1024: {mmd:.2f} s, {share:.1%} of a step"
    )
    assert plain / trainer >= 4
    assert script / captions >= 6
    assert share < 0.1


def test_losses_without_padding_are_those_with_it(checkpoint: Path, training_set: TrainingSet) -> None:
    model = load_clip(str(checkpoint)).model
    batch, _ = next(batches(training_set))
    tower = TextTower(model)

    def losses(encode: Callable[[Texts], Tensor]) -> list[Tensor]:
        texts = encode(batch.captions), encode(batch.dialogues)
        return list(draft_loss(batch.image_vectors, *texts, model.logit_scale.exp(), **LOSS).values())

    with torch.no_grad():
        ours, padded = (
            losses(lambda texts: tower(texts)[0]),
            losses(lambda texts: model.encode_text(texts.tokens, normalize=True)),
        )
    difference = max(abs(float(a - b)) for a, b in zip(ours, padded, strict=True))
    print(f"\nlargest difference of a loss: {difference:.1e}")
    assert difference < 1e-5
