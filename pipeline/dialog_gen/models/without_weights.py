"""A model as transformers builds it, without memory for its weights: what its files lack, and what it makes of images.

The weights lie on torch's device "meta": they have shapes and no values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.output import quiet
from dialog_gen.core.plural import count_of
from dialog_gen.models.quantized import UNKNOWN_SHAPE, unpacked
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.models.transformers_files import needed_of, read_configuration

_SHOWN = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutWeights:
    """A model that has shapes and no values."""

    config: Any
    """transformers' configuration."""
    model: Any
    """None if transformers has no such model."""

    def image_features(self, inputs: Mapping[str, Any]) -> int | None:
        """The vectors that the model makes of the images of a processor's `inputs`, which are to be image tokens.

        None if the model does not say: some look at values. Raises errors of any kind for images of wrong shapes.
        """
        features_of = getattr(self.model, "get_image_features", None)
        if features_of is None or "pixel_values" not in inputs:
            return None
        known = signature(getattr(features_of, "__wrapped__", features_of)).parameters
        given = {name: value for name, value in inputs.items() if name in known}
        try:
            with quiet():
                found = features_of(**given | {"pixel_values": inputs["pixel_values"].to("meta", self.model.dtype)})
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, NotImplementedError) or "meta" in str(error):
                return _by_config(self.config, self.model, inputs)
            raise
        found = getattr(found, "pooler_output", found)
        every = found if isinstance(found, list | tuple) else [found]
        return sum(features.numel() // features.shape[-1] for features in every)


def _by_config(config: Any, model: Any, inputs: Mapping[str, Any]) -> int | None:
    """The same by the configuration, for architectures that look at values; None if it does not say.

    Raises ValueError for patches of another size than the model's.
    """
    vision: Any = getattr(config, "vision_config", None)
    if (count := getattr(config, "num_query_tokens", None)) is not None:
        return count * len(inputs["pixel_values"])
    if (grids := inputs.get("image_grid_thw")) is not None and hasattr(vision, "spatial_merge_size"):
        _check_patches(model, inputs["pixel_values"])
        return int(grids.prod(dim=-1).sum()) // vision.spatial_merge_size**2
    if (scale := getattr(config, "scale_factor", None)) is not None and hasattr(vision, "patch_size"):
        # Idefics 3 and SmolVLM: (samples, tiles, channels, height, width), with empty tiles after the last.
        pixels = inputs["pixel_values"]
        tiles = int((pixels != 0).flatten(2).any(dim=-1).sum())
        height, width = (side // vision.patch_size for side in pixels.shape[-2:])
        return tiles * height * width // scale**2
    return None


def _check_patches(model: Any, pixels: Any) -> None:
    """Raises ValueError unless each row of `pixels` is as long as a patch that the first layer of the tower reads."""
    weights = (weight for name, weight in model.named_parameters() if "patch_embed" in name and weight.ndim > 1)
    first = next(weights, None)
    if first is not None and pixels.ndim == 2 and pixels.shape[-1] != first[0].numel():
        raise ValueError(
            f"the processor makes patches of {pixels.shape[-1]} numbers, and the model reads patches of "
            f"{first[0].numel()}"
        )


def without_weights(model: GeneratorModel, stored: Mapping[str, tuple[int, ...]]) -> WithoutWeights:
    """Builds a model that has a folder; takes seconds if nothing of transformers is imported yet.

    `stored` are the names and shapes of the tensors in its weights; empty if they are not here.

    Raises UsageError if transformers cannot build it from its config.json, or its weights lack tensors or have tensors
    of other shapes. The weights are not looked at if they are not here, or without accelerate; of quantised ones, only
    the names are.
    """
    model.architecture.register_with_transformers()
    with quiet():
        import torch
        import transformers

        hf: Any = transformers

        try:
            config = read_configuration(model.files, model.config, stored)
        # The configurations of transformers raise errors of any kind.
        except Exception as error:
            raise _cannot_build(model, error) from error
    known = hf.AutoModelForImageTextToText._model_mapping  # noqa: SLF001 - there is no public way
    if type(config) not in known:
        if type(config) not in hf.MODEL_FOR_CAUSAL_LM_MAPPING or "vision_config" not in type(config).sub_configs:
            raise UsageError(
                f"{model.name} ({config.model_type}) is no model that answers questions about images: choose another "
                "one, or fetch config.json again."
            )
        return WithoutWeights(config=config, model=None)
    classes = known[type(config)]
    names = {each.__name__ for each in (classes if isinstance(classes, list | tuple) else [classes])}
    named: list[str] = model.config.get("architectures") or []
    if named and not any(name in names or hasattr(hf, name) for name in named):
        raise UsageError(
            f"{model.files / 'config.json'} names the architecture {named[0]}, which transformers does not have; a "
            f"{config.model_type} is a {min(names)}. Fetch the file again."
        )
    quantized, built = _forget_quantization(config), None
    try:
        with quiet(), torch.device("meta"):
            built = hf.AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        if stored and find_spec("accelerate"):
            _compare(model.files, type(built), config, unpacked(stored) if quantized else stored)
    except UsageError:
        raise
    except Exception as error:
        # Where transformers joins matrices of experts, those that are packed have no shapes that fit.
        if built is None or not quantized:
            raise _cannot_build(model, error) from error
    return WithoutWeights(config=config, model=built)


def _forget_quantization(config: Any) -> bool:
    """Whether the weights are quantised; then without it, since transformers wants their library for an empty model."""
    found = False
    for part in (config, *(getattr(config, name, None) for name in type(config).sub_configs)):
        for name in ("quantization_config", "compression_config"):
            if getattr(part, name, None) is not None:
                delattr(part, name)
                found = True
    return found


def _compare(folder: Path, model_class: Any, config: Any, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UsageError unless the model finds all its tensors in these, and errors of any kind.

    transformers pairs their names, as it does for the engine: those of older checkpoints differ from the model's.
    """
    import torch

    with quiet():
        _, found = model_class.from_pretrained(
            None,
            config=config,
            # Shapes alone: no file is read.
            state_dict={name: torch.empty(shape, device="meta") for name, shape in stored.items()},
            device_map="meta",
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    if missing := needed_of(found["missing_keys"], config):
        raise UsageError(
            f"the weights in {folder} lack {count_of(len(missing), 'tensor')} that its config.json asks for, such as "
            f"{missing[0]}: fetch the weights, their index and config.json again, of one revision."
        )
    if differing := sorted(each for each in found["mismatched_keys"] if tuple(each[1]) != UNKNOWN_SHAPE):
        name, there, asked = differing[0]
        raise UsageError(
            f"the weights in {folder} have {count_of(len(differing), 'tensor')} of another shape than its config.json "
            f"asks for, such as {name} {(*there,)}, not {(*asked,)}: fetch the weights and config.json again, of one "
            "revision."
        )


def _cannot_build(model: GeneratorModel, error: Exception) -> UsageError:
    problem = in_one_line(error)
    return UsageError(
        f"{model.files / 'config.json'}: transformers cannot build the model ({problem}). Fetch config.json and the "
        "weights again, of one revision."
    )


def in_one_line(error: BaseException) -> str:
    """What an error of a library says, in one line that is not too long."""
    said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}..."
