"""Models of any format in and out. Formats and shipped models are found through the registries in `base`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dialog_gen.clip.base import CLIP_MODELS, FORMATS, TUNING, Capability, Clip, ClipFormat, check_capabilities
from dialog_gen.clip.open_clip.layout import CONFIG_FILE, OPEN_CLIP, WEIGHTS_FILE
from dialog_gen.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def load_clip(
    name: str,
    pretrained: str | None = None,
    *,
    needs: Sequence[Capability] = TUNING,
    allow_activation_mismatch: bool = False,
) -> Clip:
    """A model by open_clip's name and a pretrained tag or a safetensors file, a checkpoint folder, or a shipped name.

    `needs`: what the model must be able to do; by default, be a plain CLIP that a training can start from. `SEARCH`
    gives the model with all that its text vectors are made of, such as a third tower, which a plain CLIP lacks.

    OpenAI's and LAION-400M's weights were trained with QuickGELU. Under `ViT-B-32` they load and lose accuracy; that is
    an error here unless `allow_activation_mismatch`, which reproduces published baselines that overlooked it.

    Raises UsageError for an unknown name or tag, pickled weights, weights of another architecture, that mismatch, a
    damaged folder, and a model that lacks what is needed.
    """
    folder = _folder_of(name)
    if folder is not None:
        return _format_of(name, folder, pretrained, needs).load(folder)
    from dialog_gen.clip.open_clip.checkpoint import load_named

    check_capabilities(name, FORMATS.get(OPEN_CLIP), needs)
    return load_named(name, pretrained, allow_activation_mismatch=allow_activation_mismatch)


def check_clip(name: str, pretrained: str | None = None, *, needs: Sequence[Capability] = TUNING) -> None:
    """Raises UsageError where `load_clip` would for the names alone; loads nothing."""
    folder = _folder_of(name)
    if folder is not None:
        _format_of(name, folder, pretrained, needs).check(folder)
        return
    from dialog_gen.clip.open_clip.checkpoint import check_named

    check_capabilities(name, FORMATS.get(OPEN_CLIP), needs)
    check_named(name, pretrained)


def new_clip(name: str, seed: int) -> Clip:
    """A model with weights drawn at random from `seed`, to be trained from scratch.

    `name`: open_clip's name of a model, a JSON file of open_clip's model configuration, or a checkpoint folder or
    shipped name, from which all but the weights is taken.

    Raises UsageError for an unknown name, a damaged file, or a folder that is no open_clip checkpoint.
    """
    from dialog_gen.clip.open_clip.checkpoint import new_named, new_of_folder

    folder = _folder_of(name)
    if folder is None:
        return new_named(name, seed)
    if not FORMATS.get(OPEN_CLIP).recognises(folder):
        raise _no_checkpoint(name)
    return new_of_folder(folder, seed)


def save_clip(clip: Clip, folder: Path, changed: "Mapping[str, Tensor] | None" = None) -> None:
    """Writes what `load_clip` loads, in the model's format; `changed` takes the place of the model's own tensors.

    The weights come last. Raises OSError or SafetensorError for what the disk refuses.
    """
    FORMATS.get(clip.format).save(clip, folder, changed or {})


def _folder_of(name: str) -> Path | None:
    """The checkpoint folder that a name means; None for a name of open_clip's."""
    if name in CLIP_MODELS.names():
        return CLIP_MODELS.get(name)
    return Path(name) if Path(name).is_dir() else None


def _format_of(name: str, folder: Path, pretrained: str | None, needs: Sequence[Capability]) -> ClipFormat:
    """The first of the folder's formats that can do what is needed.

    open_clip's comes last: other formats may add files to such a checkpoint.
    """
    if pretrained is not None:
        raise UsageError(f"{name} is a checkpoint with weights of its own: leave out pretrained = {pretrained!r}.")
    formats = FORMATS.all()
    formats[OPEN_CLIP] = formats.pop(OPEN_CLIP)
    found: list[ClipFormat] = []
    for form in formats.values():
        if form.recognises(folder):
            if form.can.issuperset(needs):
                return form
            found.append(form)
    if not found:
        raise _no_checkpoint(name)
    check_capabilities(name, found[0], needs)
    raise AssertionError("a format that lacks nothing was left out")


def _no_checkpoint(name: str) -> UsageError:
    return UsageError(f"{name} is no checkpoint folder: it needs {CONFIG_FILE} and {WEIGHTS_FILE}.")
