"""Quantised weights (AWQ, GPTQ, compressed-tensors and others): the tensors that stand for each matrix."""

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from dialog_gen.core.errors import UsageError

UNKNOWN_SHAPE = (0,)
"""The shape of a matrix that is packed: no matrix of a model has it."""

_SHOWN = 240
_PLAIN = ("weight", "bias")
_BESIDE = (
    *("scales", "qzeros", "g_idx"),  # AWQ, GPTQ
    *("weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale"),
    *("input_scale", "input_zero_point", "input_global_scale", "k_scale", "v_scale"),
    *("absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format"),  # bitsandbytes
)
"""Tensors that say how to read a packed matrix, and do not hold it."""


def method_of(config: Mapping[str, Any]) -> str | None:
    """How a model's weights are quantised by the content of its config.json, such as "awq"; None if they are not."""
    parts: list[Any] = [config, config.get("text_config"), config.get("vision_config")]
    for part in filter(None, parts):
        stored = part.get("quantization_config") or part.get("compression_config")
        if stored:
            return str(stored.get("quant_method", "unknown")) if isinstance(stored, dict) else str(stored)
    return None


def unpacked(stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's own tensors, from those in its quantised weights.

    A module whose tensors have other names than `weight` and `bias` has a `weight` of `UNKNOWN_SHAPE`, unless these
    only say how to read it. Tensors of unknown formats count as weights.
    """
    shapes = dict(stored)
    for name in stored:
        *owners, last = name.split(".")
        # bitsandbytes: `MODULE.weight.absmax`, `MODULE.weight.quant_state.bitsandbytes__nf4`
        within = "weight" in owners
        if not owners or (last in _PLAIN and not within):
            continue
        weight = ".".join([*(owners[: owners.index("weight")] if within else owners), "weight"])
        if weight in stored or (last not in _BESIDE and not within):
            shapes[weight] = UNKNOWN_SHAPE
    return shapes


class UnreadableHereError(UsageError):
    """An engine knows the format of a model's weights, but cannot read it on this machine."""


def unreadable(name: str, method: str, engine: str, problem: object, *, known: bool) -> UsageError:
    """The error for a model whose quantised weights an engine cannot read on this machine.

    `known` says whether the engine knows the format, and could read it on another machine.
    """
    kind = UnreadableHereError if known else UsageError
    said = shorten(str(problem), _SHOWN, placeholder="...").rstrip(".")
    return kind(
        f"{engine} cannot read the weights of {name} here, which are quantised ({method}): {said}. Choose weights that "
        "are not quantised, or another --engine or --dtype."
    )
