"""Runs an evaluation, from its options to its results. Imports torch, so `dialog_eval.api` imports it late."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import open_clip
import torch

from dialog_eval.data.image_index import ImageIndex
from dialog_eval.data.images import embed_images
from dialog_eval.examples import with_thumbnails
from dialog_eval.models import Models
from dialog_eval.options import Common
from dialog_eval.results import Blend, Entry, Reference, Results
from dialog_eval.tasks.base import TaskDefinition
from dialog_eval.trained import label_of, test_images_of, training_of
from dialog_gen.clip.base import SEARCH, Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress
from dialog_gen.core.version import __version__


def measure(
    definitions: Sequence[TaskDefinition[Any]],
    common: Common,
    blends: Sequence[tuple[Blend, float]] | None,
    on_progress: OnProgress,
) -> Results:
    """Measures the models on the tasks, in one pass over the images.

    With `blends` it is a sweep, which also measures its two ends: the baseline and the checkpoint, or the text tower
    and the third tower of a checkpoint that has one.

    Raises UsageError for wrong use. Except for an image that cannot be decoded, it does so before anything is encoded.
    """
    device = _device(common.device)
    index = ImageIndex(common.images)
    tasks = [task for definition in definitions for task in definition.load(index)]
    models = _models(common, blends, device, definitions)
    images = embed_images(models, index, {image_id for task in tasks for image_id in task.image_ids}, on_progress)
    entries, references = list[Entry](), list[Reference]()
    for task in tasks:
        more_entries, more_references = task.evaluate(models, images, on_progress)
        entries += with_thumbnails(more_entries, index, common.examples)
        references += more_references
    options = asdict(common)
    for definition in definitions:
        options |= asdict(definition.options)
    checkpoints = [common.baseline, common.checkpoint][-len(models.alone) :]
    return Results(
        baseline=models.variants[0].label if len(models.alone) > 1 else None,
        entries=entries,
        references=references,
        settings={
            "versions": {
                "dialog-gen": __version__,
                "torch": torch.__version__,
                "open_clip": open_clip.__version__,
            },
            "device": str(device),
            "options": json.loads(json.dumps({**options, "blends": blends}, default=str)),
            "models": {
                variant.label: {
                    "name": variant.clip.name,
                    "weights_sha256": variant.clip.weights_sha256,
                    "training": training_of(checkpoint),
                    "test_images": test_images_of(checkpoint, index.sha256s.values()),
                }
                for variant, checkpoint in zip(models.alone, checkpoints, strict=True)
            },
            "texts": models.texts,
            "truncated_texts": models.truncated_texts,
        },
    )


def _models(
    common: Common,
    blends: Sequence[tuple[Blend, float]] | None,
    device: torch.device,
    definitions: Sequence[TaskDefinition[Any]],
) -> Models:
    def load(name: str, pretrained: str | None) -> Clip:
        for definition in definitions:
            if (opened := definition.open_model(name, pretrained)) is not None:
                return opened
        return load_clip(name, pretrained, needs=SEARCH, allow_activation_mismatch=common.allow_activation_mismatch)

    checkpoint = load(common.checkpoint, common.pretrained)
    baseline = load(common.baseline, common.baseline_pretrained) if common.baseline else None
    if blends is not None and checkpoint.untuned is not None and checkpoint.beta is not None:
        baseline, checkpoint = baseline or checkpoint.untuned, checkpoint.with_beta(0.0)
    elif common.beta is not None:
        if checkpoint.untuned is None:
            raise UsageError(f"--beta is for checkpoints with a third tower: {common.checkpoint} has none.")
        checkpoint = checkpoint.with_beta(common.beta)
    if blends is not None and baseline is None:
        raise UsageError("blends are of the checkpoint with a baseline: give --baseline.")
    return Models(
        checkpoint,
        common.label or label_of(common.checkpoint, checkpoint.name),
        baseline,
        common.baseline_label or (label_of(common.baseline or "", baseline.name) if baseline else ""),
        blends or (),
        device=device,
        batch_size=common.batch_size,
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    # torch has no error type of its own for this: a device that it was not built with raises AssertionError, others
    # RuntimeError.
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device
