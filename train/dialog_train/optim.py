"""Selects the trained parameters of a CLIP, their weight decay and their learning rate."""

import math
from typing import Any

from torch import nn

from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_train.config import OptimSettings
from dialog_train.lora import add_lora

LOGIT_SCALE = "logit_scale"


def learning_rate(step: int, total: int, settings: OptimSettings) -> float:
    """The learning rate of step `step` (counted from 0) of `total`: linear warm-up, then decay towards 0 at `total`."""
    warmup = min(settings.warmup_steps, total)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / (total - warmup)
    return settings.lr * ((1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done)


def select_trainable(model: Any, tower: TextTower, settings: OptimSettings) -> dict[str, nn.Parameter]:
    """Freezes all of `model` except its text tower, the tower's last layers or LoRA's updates, and a learned scale.

    Returns the trainable parameters under the model's own names. Raises UsageError if the tower has fewer layers than
    are to be trained.
    """
    if settings.lora is not None:
        chosen = add_lora(tower, settings.lora)
    else:
        chosen = {id(parameter) for parameter in tower.parameters()}
    if settings.train_last_layers is not None:
        chosen -= _before_last_layers(tower, settings.train_last_layers)
    if settings.logit_scale == "learn":
        chosen.add(id(model.logit_scale))
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(model: nn.Module, trainable: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: no decay on norms, biases, embeddings and the logit scale."""
    embeddings = _embeddings(model)
    kept = [p for p in trainable.values() if p.ndim < 2 or id(p) in embeddings]
    decayed = [p for p in trainable.values() if p.ndim >= 2 and id(p) not in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _embeddings(model: nn.Module) -> set[int]:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # open_clip has these as plain parameters.
    bare = ("positional_embedding", "cls_emb", "class_embedding")
    return tables | {id(p) for name, p in model.named_parameters() if name.rsplit(".", 1)[-1] in bare}


def _before_last_layers(tower: TextTower, count: int) -> set[int]:
    """The ids of the parameters of the embeddings, of their norm, and of all layers except the last `count`."""
    layers = tower.layers()[1]
    if count > len(layers):
        raise UsageError(f"optim.train_last_layers = {count}: the text tower has {len(layers)} layers.")
    # Hugging Face's towers have a module of this name, which also contains a norm.
    embedding = {id(p) for name, p in tower.named_parameters() if "embeddings" in name.split(".")}
    return _embeddings(tower) | embedding | {id(p) for layer in layers[:-count] for p in layer.parameters()}
