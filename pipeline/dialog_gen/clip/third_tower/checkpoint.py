"""Loads and saves a model with a third tower."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import override

from dialog_gen.clip.base import FORMATS, TUNING, Clip, TextPart
from dialog_gen.clip.loader import format_of
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.clip.third_tower.layout import CONFIG_FILE, THIRD_TOWER, WEIGHTS_FILE
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import read_regular, write_json
from dialog_gen.core.plain_problems import first_problem
from dialog_gen.core.tensors import load_tensors, save_tensors, sha256_of_weights

PREFIX = "third."
"""The prefix of the third tower's parameter names in the hashed weights and in `changed`."""


class _Config(BaseModel):
    """The content of third_tower.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_weights_sha256: str
    beta: float = Field(ge=0, le=1)
    question_beta: float | None = Field(default=None, ge=0, le=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThirdTowerClip(Clip):
    """A model whose text vectors are normalize(beta * T(y) + (1 - beta) * G(y)), T(y) and G(y) unit-norm (eq. 5.2.1).

    T is the base model's text tower, G the third tower. The fields of `Clip` are those of the base model, except the
    name, and the hash, which covers the base model and the third tower.
    """

    format: ClassVar[str] = THIRD_TOWER

    base: Clip
    third: TextTower
    """G, the third tower."""
    base_share: float
    """beta, from 0 (only the third tower) to 1 (only the base model)."""
    question_share: float | None = None
    """beta for texts that were made of a question (see `for_questions`); None: the same."""

    @property
    @override
    def beta(self) -> float | None:
        return self.base_share if self.question_share is None else None

    @property
    @override
    def untuned(self) -> Clip:
        return self.base

    @override
    def with_beta(self, beta: float) -> Self:
        return replace(self, base_share=beta, question_share=None)

    @override
    def for_questions(self) -> "ThirdTowerClip":
        return self if self.question_share is None else self.with_beta(self.question_share)

    @override
    def to(self, device: torch.device | str) -> Self:
        self.model.to(device)
        self.third.to(device)
        return self

    @override
    def text_parts(self) -> list[TextPart]:
        of_base = replace(self.base.own_text_part(), share=self.base_share)
        of_third = TextPart(clip=self, tower=self.third, share=1 - self.base_share)
        return [part for part in (of_base, of_third) if part.share]


def new_third_tower(clip: Clip, beta: float, question_beta: float | None = None) -> ThirdTowerClip:
    """Adds a third tower, a copy of the text tower of `clip`, to `clip`, which is not changed.

    `beta`, `question_beta`: `ThirdTowerClip.base_share` and `question_share`.

    Raises UsageError if the text tower is of an unknown kind.
    """
    return _with_third_tower(clip, clip, copy.deepcopy(text_tower(clip)), beta, question_beta)


def load_third_tower(folder: Path) -> ThirdTowerClip:
    """Loads the base model and the third tower of a checkpoint folder.

    Raises UsageError if the folder is damaged, or if the third tower belongs to another base model.
    """
    clip = format_of(str(folder), folder, None, TUNING).load(folder)
    try:
        config = _Config.model_validate_json(read_regular(folder / CONFIG_FILE))
    except OSError as error:
        raise UsageError(f"{folder / CONFIG_FILE} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise UsageError(f"{folder / CONFIG_FILE} is damaged: {first_problem(error)}.") from None
    if config.base_weights_sha256 != clip.weights_sha256:
        raise UsageError(f"the third tower in {folder} was trained beside another model than the one there.")
    third = copy.deepcopy(text_tower(clip))
    _load_weights(third, folder / WEIGHTS_FILE)
    return _with_third_tower(clip, replace(clip, name=config.base), third.eval(), config.beta, config.question_beta)


def save_third_tower(clip: ThirdTowerClip, folder: Path, changed: Mapping[str, Tensor]) -> None:
    """Writes a folder for `load_third_tower`, the base model last.

    The tensors in `changed` whose names begin with `PREFIX` replace those of the third tower; the others are ignored.
    """
    weights = _weights(clip.third)
    weights |= {name.removeprefix(PREFIX): value for name, value in changed.items() if name.startswith(PREFIX)}
    config = _Config(
        base=clip.base.name,
        base_weights_sha256=clip.base.weights_sha256,
        beta=clip.base_share,
        question_beta=clip.question_share,
    )
    save_tensors(weights, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, config.model_dump(mode="json", exclude_none=True))
    FORMATS.get(clip.base.format).save(clip.base, folder, {})


def text_tower(clip: Clip) -> TextTower:
    """The text tower of a model, not a copy. Raises UsageError if it is of an unknown kind."""
    try:
        return TextTower(clip.model)
    except TypeError as error:
        raise UsageError(f"{clip.name} cannot have a third tower: {error}.") from None


def _with_third_tower(
    clip: Clip, base: Clip, third: TextTower, beta: float, question_beta: float | None
) -> ThirdTowerClip:
    own: dict[str, Any] = {field.name: getattr(clip, field.name) for field in fields(Clip)}
    weights = {f"{PREFIX}{name}": value for name, value in _weights(third).items()}
    own["weights_sha256"] = sha256_of_weights({**clip.model.state_dict(), **weights})
    return ThirdTowerClip(**own, base=base, third=third, base_share=beta, question_share=question_beta)


def _weights(tower: TextTower) -> dict[str, Tensor]:
    # In the state_dict, a tower that sees padding has its tensors twice.
    return {name: parameter.detach() for name, parameter in tower.named_parameters()}


def _load_weights(tower: TextTower, file: Path) -> None:
    try:
        found = load_tensors(file)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} cannot be read ({error}): get it again.") from None
    expected = _weights(tower)
    for name in expected.keys() | found.keys():
        if name not in expected or name not in found or expected[name].shape != found[name].shape:
            raise UsageError(f"{file} does not fit the text tower of the base model: they differ in {name}.")
        expected[name].copy_(found[name])
