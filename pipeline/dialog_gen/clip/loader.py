"""Loads, checks and saves models of any format. The registries in `base` list the formats and the shipped models."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dialog_gen.clip.base import (
    CLIP_MODELS,
    FORMATS,
    SEARCH,
    TUNING,
    Capability,
    Clip,
    ClipFormat,
    check_capabilities,
)
from dialog_gen.clip.open_clip.layout import CONFIG_FILE, OPEN_CLIP, WEIGHTS_FILE
from dialog_gen.core.checksums import check_checksums, write_checksums
from dialog_gen.core.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


def load_clip(
    name: str,
    pretrained: str | None = None,
    *,
    needs: Sequence[Capability] = TUNING,
    allow_activation_mismatch: bool = False,
) -> Clip:
    """Loads a model. `name` is a checkpoint folder, a shipped name, or a name of open_clip's.

    With a name of open_clip's, `pretrained` is a pretrained tag or a safetensors file. `needs` says what the model must
    be able to do. The default, `TUNING`, is for a training: a folder with a third tower then loads as the plain CLIP.
    With `SEARCH` the model includes everything that its text vectors are made from, such as a third tower.

    OpenAI's and LAION-400M's weights were trained with QuickGELU. As `ViT-B-32` they load but lose accuracy. This is an
    error unless `allow_activation_mismatch` is set, to reproduce published baselines that overlooked it.

    Raises UsageError for an unknown name or tag, pickled weights, weights of another architecture, an activation
    mismatch, a damaged folder (by its checksums, if it has them), and a model that lacks one of `needs`; and
    MissingExtraError without open_clip.
    """
    _require_open_clip(name)
    folder = _folder_of(name)
    if folder is not None:
        # First, since without a file of its own format a folder may load as another model.
        check_checksums(folder)
        return format_of(name, folder, pretrained, needs).load(folder)
    from dialog_gen.clip.open_clip.checkpoint import load_named

    check_capabilities(name, FORMATS.get(OPEN_CLIP), needs)
    return load_named(name, pretrained, allow_activation_mismatch=allow_activation_mismatch)


def check_clip(name: str, pretrained: str | None = None, *, needs: Sequence[Capability] = TUNING) -> None:
    """Checks the names without loading weights. Raises UsageError if `load_clip` would raise it for them."""
    _require_open_clip(name)
    folder = _folder_of(name)
    if folder is not None:
        format_of(name, folder, pretrained, needs).check(folder)
        return
    from dialog_gen.clip.open_clip.checkpoint import check_named

    check_capabilities(name, FORMATS.get(OPEN_CLIP), needs)
    check_named(name, pretrained)


def check_nothing_lost(name: str) -> None:
    """Raises UsageError for a folder with more than the CLIP that a training reads of it, such as a third tower."""
    folder = _folder_of(name)
    if folder is None:
        return
    plain, whole = (format_of(name, folder, None, needs) for needs in (TUNING, SEARCH))
    if whole is not plain:
        raise UsageError(
            f"{name} is a {whole.kind}: a training reads only the CLIP in it, and what was tuned would be lost. Give "
            "the model from which it was tuned."
        )


def new_clip(name: str, seed: int) -> Clip:
    """A model with random weights, determined by `seed`, to be trained from scratch.

    `name` is a name of open_clip's, a JSON file with open_clip's model configuration, or a checkpoint folder or shipped
    name whose weights are ignored.

    Raises UsageError for an unknown name, a damaged file, or a folder that is not an open_clip checkpoint.
    """
    _require_open_clip(name)
    from dialog_gen.clip.open_clip.checkpoint import new_named, new_of_folder

    folder = _folder_of(name)
    if folder is None:
        return new_named(name, seed)
    if not FORMATS.get(OPEN_CLIP).recognises(folder):
        raise _no_checkpoint(name)
    return new_of_folder(folder, seed)


def save_clip(clip: Clip, folder: Path, changed: "Mapping[str, Tensor] | None" = None) -> None:
    """Writes a folder for `load_clip`, in the model's format; the tensors in `changed` replace those of the model.

    The weights are written last but for checksums of all files, which `load_clip` checks. Raises OSError or
    SafetensorError if the folder cannot be written.
    """
    form = FORMATS.get(clip.format)
    form.save(clip, folder, changed or {})
    write_checksums(folder, free=form.free_files)


def _require_open_clip(name: str) -> None:
    if find_spec("open_clip") is None:
        raise MissingExtraError(f"the CLIP model {name}", "train")


def _folder_of(name: str) -> Path | None:
    """The checkpoint folder of a shipped name or a path; None for a name of open_clip's."""
    if name in CLIP_MODELS.names():
        return CLIP_MODELS.get(name)
    return Path(name) if Path(name).is_dir() else None


def format_of(name: str, folder: Path, pretrained: str | None, needs: Sequence[Capability]) -> ClipFormat:
    """The first format of a checkpoint folder that can do what is needed; parameters as in `load_clip`.

    open_clip's format comes last, because other formats may add files to an open_clip checkpoint.
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
        inside = folder / "model"  # as trainings write it
        hint = f" Its model is {inside}." if any(form.recognises(inside) for form in formats.values()) else ""
        raise UsageError(f"{_no_checkpoint(name)}{hint}")
    check_capabilities(name, found[0], needs)
    raise AssertionError("a format that can do what is needed was not used")


def _no_checkpoint(name: str) -> UsageError:
    return UsageError(f"{name} is no checkpoint folder: it needs {CONFIG_FILE} and {WEIGHTS_FILE}.")
