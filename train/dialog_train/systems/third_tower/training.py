"""CLIP-3Modal: a third tower, for dialogues, beside a CLIP's frozen image and text towers (thesis, section 4.3).

A checkpoint is the base model's own folder, which loads in open_clip as the base model, with two files more:

    FOLDER/third_tower.json          the base model's name and hash of weights; beta, its share in a text's vector
    FOLDER/third_tower.safetensors   the third tower, by the names that `TextTower` has for its parameters
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from dialog_gen.clip.loader import Clip, load_clip, save_clip, sha256_of_weights
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_gen.core.tensors import save_tensors
from dialog_train.data.training_set import Batch
from dialog_train.losses import third_tower_loss
from dialog_train.optim import select_trainable
from dialog_train.system import gather_rows
from dialog_train.systems.third_tower.config import ThirdTowerRecipe
from dialog_train.text import TextTower

CONFIG_FILE, WEIGHTS_FILE = "third_tower.json", "third_tower.safetensors"
_PREFIX = "third."


class _Config(BaseModel):
    """The content of third_tower.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_weights_sha256: str
    beta: float = Field(ge=0, le=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThirdTowerClip(Clip):
    """A model whose text vectors are normalize(beta * T(y) + (1 - beta) * G(y)), T(y) and G(y) unit-norm (eq. 5.2.1).

    As a `Clip` it is its base model, whose text tower T is, but for the name and the hash, which covers both.
    """

    base: Clip
    third: TextTower
    """G, in evaluation mode."""
    beta: float
    """From 0, the third tower alone, to 1, the base model."""


class ThirdTower:
    """A `System` that trains a copy of a CLIP's text tower, or the last layers of it, and a copy of its logit scale."""

    def __init__(self, clip: Clip, recipe: ThirdTowerRecipe) -> None:
        """Raises UsageError for a tower of an unknown kind, or one with fewer layers than are to be trained."""
        self._clip, self._beta = clip, recipe.beta
        self._towers = _Towers(clip, recipe)
        self.name = clip.name
        self.fingerprint: dict[str, Any] = {"weights_sha256": clip.weights_sha256}
        self.model: nn.Module = self._towers
        self.module: nn.Module = self._towers
        self.logit_scale: nn.Parameter | None = self._towers.logit_scale
        self.trainable = select_trainable(self._towers, self._towers.third, recipe.optim)
        # Hugging Face's towers may have a pooler that goes unused.
        self.may_leave_parameters_unused = not self._towers.third.is_native

    @property
    def sees_padding(self) -> bool:
        """Whether texts must have the model's full context length."""
        return self._towers.text.whole is not None

    def save(self, folder: Path, changed: Mapping[str, Tensor]) -> None:
        """A checkpoint folder, as the module's docstring tells; the base model comes last."""
        weights = _weights(self._towers.third)
        weights |= {name.removeprefix(_PREFIX): value for name, value in changed.items() if name.startswith(_PREFIX)}
        config = _Config(base=self.name, base_weights_sha256=self._clip.weights_sha256, beta=self._beta)
        save_tensors(weights, folder / WEIGHTS_FILE)
        write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
        save_clip(self._clip, folder)


class _Towers(nn.Module):
    """The frozen text tower T, the third tower G, and the temperature of the losses."""

    def __init__(self, clip: Clip, recipe: ThirdTowerRecipe) -> None:
        super().__init__()
        self.text = _text_tower(clip)
        self.third = copy.deepcopy(self.text)
        self.logit_scale: nn.Parameter = copy.deepcopy(clip.model.logit_scale)
        self._loss = recipe.loss

    def train(self, mode: bool = True) -> "_Towers":
        """Sets the mode of G: T has no dropout in training either."""
        super().train(mode)
        self.text.eval()
        return self

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # Captions have a fraction of the tokens of concatenated dialogues, and need no backward pass: their vectors
        # cost about a tenth of a step, and a cache of them on disk would be one more thing to keep in order.
        with torch.no_grad():
            captions = self.text(batch.caption_tokens)
        dialogues = self.third(batch.dialogue_tokens)
        # Accelerate's autocast is meant for the towers; losses need all of float32.
        with torch.autocast(dialogues.device.type, enabled=False):
            rows = (batch.image_vectors, captions, dialogues)
            image, caption, dialogue = (gather_rows(normalize(of.float(), dim=-1)) for of in rows)
            return third_tower_loss(image, caption, dialogue, self.logit_scale.exp(), **self._loss.model_dump())


def load_model(name: str, pretrained: str | None = None, *, allow_activation_mismatch: bool = False) -> Clip:
    """As `load_clip`; a checkpoint folder with a third tower gives a `ThirdTowerClip`.

    Raises UsageError where `load_clip` does, and for a third tower that is damaged or belongs to another base model.
    """
    clip = load_clip(name, pretrained, allow_activation_mismatch=allow_activation_mismatch)
    folder = Path(name)
    if not (folder / CONFIG_FILE).is_file():
        return clip
    try:
        config = _Config.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{folder / CONFIG_FILE} is damaged: {where}: {first['msg']}.") from None
    if config.base_weights_sha256 != clip.weights_sha256:
        raise UsageError(f"the third tower in {folder} was trained beside another model than the one that lies there.")
    third = copy.deepcopy(_text_tower(clip))
    _load_weights(third, folder / WEIGHTS_FILE)
    weights = {f"{_PREFIX}{name}": value for name, value in _weights(third).items()}
    own: dict[str, Any] = {field.name: getattr(clip, field.name) for field in fields(clip)}
    own["weights_sha256"] = sha256_of_weights({**clip.model.state_dict(), **weights})
    return ThirdTowerClip(**own, base=replace(clip, name=config.base), third=third.eval(), beta=config.beta)


def _text_tower(clip: Clip) -> TextTower:
    try:
        return TextTower(clip.model)
    except TypeError as error:
        raise UsageError(f"{clip.name} cannot have a third tower: {error}.") from None


def _weights(tower: TextTower) -> dict[str, Tensor]:
    # Not its state_dict, where a tower that sees padding has its tensors twice.
    return {name: parameter.detach() for name, parameter in tower.named_parameters()}


def _load_weights(tower: TextTower, file: Path) -> None:
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} cannot be read ({error}): get it again.") from None
    expected = _weights(tower)
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found or expected[name].shape != found[name].shape:
            raise UsageError(f"{file} does not fit the text tower beside it: they differ in {name}.")
        expected[name].copy_(found[name])
