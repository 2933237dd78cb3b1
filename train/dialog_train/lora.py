"""LoRA (arXiv 2106.09685): low-rank updates of a text tower's weights are trained, the weights themselves are frozen.

    W' = W + alpha / rank * B A        A (rank, in), random at first; B (out, rank), 0 at first

Each updated weight is a parametrization of torch: whatever computes with the weight gets W'. peft's own layers are not
used in training. Its layer for `nn.MultiheadAttention` adds the update to the weight and subtracts it again in every
forward, which changes W by rounding, and leaves W in the attribute that a packed tower reads. It also adds the update
of `out_proj` twice (peft 0.20), so this weight has no update here.

Saved models have the updates merged, and the adapter beside them, which `peft.PeftModel.from_pretrained` loads:

    FOLDER/adapter/adapter_config.json, adapter_model.safetensors
"""

import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import save_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_gen.core.tensors import save_tensors
from dialog_train.config import LoraSettings

ADAPTER_FOLDER = "adapter"
_WEIGHTS = ("in_proj_weight", "weight")


class LowRank(nn.Module):
    """The update of one weight (out, in)."""

    def __init__(self, weight: Tensor, settings: LoraSettings, seed: int) -> None:
        super().__init__()
        rank = settings.rank
        self.scale = settings.alpha / rank
        start = torch.empty(rank, weight.shape[1], dtype=weight.dtype)
        # As in the published code and in peft; drawn on the CPU, so that all processes and devices start alike.
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed))
        self.lora_A = nn.Parameter(start.to(weight.device))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        """W (out, in) -> W' (out, in), in W's precision."""
        return self.merge(weight, self.lora_A, self.lora_B)

    def merge(self, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """W' for other values of A and B."""
        # Mixed precision would round the update, and then the merged weights were not those that were trained.
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (b @ a)


class _Place(NamedTuple):
    """A weight with an update."""

    path: str
    """The module's name in the tower."""
    owner: Any
    weight: str
    update: LowRank


def add_lora(tower: TextTower, settings: LoraSettings) -> set[int]:
    """Adds updates to the weights that the settings name; returns the ids of the new parameters, which are trained.

    Raises UsageError if the tower has fewer layers, or no weight of these parts.
    """
    prefix, layers = tower.layers()
    count = len(layers) if settings.layers is None else settings.layers
    if count > len(layers):
        raise UsageError(f"optim.lora.layers = {count}: the text tower has {len(layers)} layers.")
    found = list[tuple[str, Any, str]]()
    for number in range(len(layers) - count, len(layers)):
        attentions = [module for module in layers[number].modules() if isinstance(module, nn.MultiheadAttention)]
        left_out = {id(module.out_proj) for module in attentions}
        for name, module in layers[number].named_modules():
            if id(module) in left_out:
                continue
            path = f"{prefix}.{number}.{name}"
            part = "attention" if re.search("attn|attention", name.lower()) else "mlp"
            for weight in _WEIGHTS if isinstance(module, nn.Linear | nn.MultiheadAttention) else ():
                if part in settings.parts and isinstance(getattr(module, weight, None), nn.Parameter):
                    found.append((path, module, weight))
    if not found:
        raise UsageError(f"optim.lora: the text tower has no weights of the parts {', '.join(settings.parts)}.")
    trained = set[int]()
    for seed, (_, module, weight) in enumerate(found):
        update = LowRank(getattr(module, weight), settings, seed)
        parametrize.register_parametrization(module, weight, update)
        trained |= {id(parameter) for parameter in update.parameters()}
    return trained


def save_tuned(clip: Clip, model: nn.Module, tower: TextTower, folder: Path, changed: Mapping[str, Tensor]) -> None:
    """`save_clip` with the updates of `tower` merged and the adapter beside them, if the tower has updates.

    `changed` replaces parameters of `model`, by their names in it, for what is written.
    """
    places = _places(tower)
    if not places:
        save_clip(clip, folder, changed)
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    values = {name: changed.get(names[id(value)], value.detach()) for name, value in _factors(places)}
    _save_adapter(places, values, folder / ADAPTER_FOLDER, "text." if _is_inside_text(clip, tower) else "")
    others = {name: value for name, value in changed.items() if ".parametrizations." not in name}
    with _merged(places, values):
        save_clip(clip, folder, others)


def _places(tower: TextTower) -> list[_Place]:
    return [
        _Place(path, module, weight, updates[0])
        for path, module in tower.named_modules()
        if parametrize.is_parametrized(module)
        for weight, updates in module.parametrizations.items()  # type: ignore[union-attr, operator]
        if isinstance(updates[0], LowRank)
    ]


def _factors(places: list[_Place]) -> Generator[tuple[str, nn.Parameter]]:
    """The names of A and B in an adapter of peft, without its prefix, and their values."""
    for place in places:
        yield f"{place.path}.lora_A.weight", place.update.lora_A
        yield f"{place.path}.lora_B.weight", place.update.lora_B


@contextmanager
def _merged(places: list[_Place], values: Mapping[str, Tensor]) -> Generator[None]:
    """Within the block, the modules have plain weights with the updates merged."""
    factors = iter(values.values())
    kept = list[nn.Parameter]()
    with torch.no_grad():
        for place in places:
            parametrize.remove_parametrizations(place.owner, place.weight, leave_parametrized=False)
            original = getattr(place.owner, place.weight)
            kept.append(original)
            whole = place.update.merge(original, next(factors).to(original), next(factors).to(original))
            setattr(place.owner, place.weight, nn.Parameter(whole, requires_grad=False))
    try:
        yield
    finally:
        for place, original in zip(places, kept, strict=True):
            setattr(place.owner, place.weight, original)
            parametrize.register_parametrization(place.owner, place.weight, place.update)


def _save_adapter(places: list[_Place], values: Mapping[str, Tensor], folder: Path, prefix: str) -> None:
    update = places[0].update
    rank = update.lora_A.shape[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": update.scale * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            # A regular expression for whole names: a list would match the image tower's layers too.
            "target_modules": "|".join(re.escape(prefix + place.path) for place in places),
        },
    )
    tensors = dict(values)
    for place in places:
        if isinstance(place.owner, nn.MultiheadAttention):
            # peft expects an update of this weight, too.
            path, width = f"{place.path}.base_layer.out_proj", place.owner.embed_dim
            tensors[f"{path}.lora_A.weight"] = update.lora_A.new_zeros(rank, width)
            tensors[f"{path}.lora_B.weight"] = update.lora_A.new_zeros(width, rank)
    named = {f"base_model.model.{prefix}{name}": value for name, value in tensors.items()}
    save_tensors(named, folder / "adapter_model.safetensors")


def _is_inside_text(clip: Clip, tower: TextTower) -> bool:
    """Whether the tower's modules are attributes of `model.text`, under the same names."""
    return tower.is_native and hasattr(clip.model, "text")
