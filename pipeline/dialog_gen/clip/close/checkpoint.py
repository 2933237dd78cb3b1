"""Loads and saves a CLOSE decoder, and loads the CLIP whose vectors it reads."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from typing_extensions import override

from dialog_gen.clip.base import CLIP_MODELS, Clip, TextWriter, WritingPrompt, WritingTask
from dialog_gen.clip.close.adapters import Adapter, load_adapter, save_adapter
from dialog_gen.clip.close.decoder import CloseDecoder, load_t5
from dialog_gen.clip.close.layout import CLOSE, CLOSE_FILE, PROMPTS
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import give_usual_mode, read_regular, write_json
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.progress import without_transformers_bars
from dialog_gen.core.tensors import load_tensors, save_tensors, sha256_of_weights

_FORMAT = "dialog-train close 1"
_DECODER, _PROJECTION, _ADAPTER = "decoder", "projection.safetensors", "adapter.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseClip(Clip):
    """A decoder and the CLIP whose vectors it reads.

    The fields of `Clip` are those of this CLIP, except the name, and the hash, which covers the decoder and the CLIP.
    """

    format: ClassVar[str] = CLOSE

    decoder: CloseDecoder
    adapter: Adapter
    reference: dict[str, Any]
    """How to load the CLIP: model, pretrained and allow_activation_mismatch, as for `load_clip`; and weights_sha256."""
    recipe: dict[str, Any]
    """The training's tasks, context, noise and adapter."""

    @override
    def writer(self, device: torch.device | str) -> TextWriter:
        return CloseWriter(self, device)


class CloseWriter:
    """A `TextWriter` whose decoder reads the vector of an image or of a text."""

    reads_vectors = True

    def __init__(self, close: CloseClip, device: torch.device | str) -> None:
        self._decoder = close.decoder.to(device)
        self.tasks: tuple[WritingTask, ...] = tuple(close.recipe["tasks"])
        self.noise: float | None = close.recipe["noise"]

    def read(self, pixels: Tensor) -> Tensor:
        """Raises TypeError, since this writer reads vectors, not pixels."""
        raise TypeError("a CLOSE decoder reads vectors, not pixels")

    def write(self, images: Tensor, prompts: Sequence[WritingPrompt], *, beams: int, max_tokens: int) -> list[str]:
        """Writes one text for each unit-norm vector (N, D) and prompt."""
        texts = [PROMPTS[one.task].format(question=one.question, answer=one.answer) for one in prompts]
        return self._decoder.write(images, texts, beams=beams, max_tokens=max_tokens)


def new_close(
    clip: Clip, decoder: CloseDecoder, adapter: Adapter, *, reference: Mapping[str, Any], recipe: Mapping[str, Any]
) -> CloseClip:
    """Combines a decoder and its CLIP into a model that can be saved.

    `reference`: the arguments model, pretrained and allow_activation_mismatch with which `load_clip` loaded `clip`.
    `recipe`: the training's tasks, context, noise and adapter.
    """
    name = reference["model"]
    if name not in CLIP_MODELS.names() and Path(name).is_dir():
        name = str(Path(name).resolve())
    reference = {**reference, "model": name, "weights_sha256": clip.weights_sha256}
    return _with_decoder(clip, clip.name, decoder, adapter, reference, dict(recipe))


def save_close(close: CloseClip, folder: Path, changed: Mapping[str, Tensor]) -> None:
    """Writes a folder for `load_close`; the tensors in `changed` replace the decoder's parameters of these names."""
    decoder = close.decoder
    if changed:
        decoder = copy.deepcopy(decoder)
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                parameter.copy_(changed[name])
    folder.mkdir(parents=True, exist_ok=True)
    with without_transformers_bars():
        decoder.t5.save_pretrained(folder / _DECODER)
        give_usual_mode(*(folder / _DECODER).glob("*.safetensors"))
    decoder.tokenizer.save_pretrained(folder / _DECODER)
    save_tensors(decoder.projection.state_dict(), folder / _PROJECTION)
    save_adapter(close.adapter, folder / _ADAPTER)
    write_json(folder / CLOSE_FILE, {"format": _FORMAT, "clip": close.reference, "recipe": close.recipe})


def load_close(folder: Path) -> CloseClip:
    """Reads a folder that `save_close` wrote; needs the network only if the CLIP is not on this machine.

    Raises UsageError if the folder has no decoder or is damaged, and if the CLIP is missing or has other weights.
    """
    file = folder / CLOSE_FILE
    try:
        content = parse_json(read_regular(file))
        reference, recipe = dict(content["clip"]), dict(content["recipe"])
        location = dict(reference)
        wanted, name = location.pop("weights_sha256"), location.pop("model")
        if content["format"] != _FORMAT:
            raise UsageError(f"{file} has the format {content['format']!r}; this version reads {_FORMAT!r}.")
        projection = load_tensors(folder / _PROJECTION)
        adapter = load_adapter(folder / _ADAPTER)
    except FileNotFoundError:
        raise UsageError(f"{folder} is no folder that `dialog-train close` wrote: {_missing_file(folder)}.") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UsageError(f"{folder} is damaged ({error}): train it again.") from None
    t5, tokenizer = load_t5(str(folder / _DECODER), local=True)
    weight = projection["weight"]  # (prefix vectors * d_model, D)
    decoder = CloseDecoder(t5, tokenizer, weight.shape[1], weight.shape[0] // t5.config.d_model)
    decoder.projection.load_state_dict(projection)
    clip = load_clip(name, **location)
    if clip.weights_sha256 != wanted:
        raise UsageError(
            f"{folder} was trained on vectors of {name} with the weights {wanted[:12]}, but its weights are now "
            f"{clip.weights_sha256[:12]}: put back the CLIP that it was trained with."
        )
    return _with_decoder(clip, folder.name, decoder.eval(), adapter, reference, recipe)


def _with_decoder(
    clip: Clip,
    name: str,
    decoder: CloseDecoder,
    adapter: Adapter,
    reference: dict[str, Any],
    recipe: dict[str, Any],
) -> CloseClip:
    own: dict[str, Any] = {field.name: getattr(clip, field.name) for field in fields(Clip)}
    weights = {**decoder.state_dict(), f"clip {reference['weights_sha256']}": torch.zeros(0)}
    own |= {"name": name, "weights_sha256": sha256_of_weights(weights)}
    return CloseClip(**own, decoder=decoder, adapter=adapter, reference=reference, recipe=recipe)


def _missing_file(folder: Path) -> str:
    missing = [name for name in (CLOSE_FILE, _PROJECTION, _ADAPTER) if not (folder / name).exists()]
    return f"it has no {missing[0]}"
