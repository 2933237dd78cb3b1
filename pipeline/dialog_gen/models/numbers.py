"""Checks the numbers in a model folder's JSON files: sizes within reason, and ids of tokens within the vocabulary.

What an engine makes of a wrong one is an error without a name, all memory, or answers that never end.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.models.json_files import read_object

_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")
_IDS = ("_token_id", "_token_ids", "_token_index")
_OR_NONE = ("num_additional_image_tokens",)
_MOST: Mapping[str, int] = {
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size", "spatial_merge_size", "scale_factor"), 1024),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth"), 4096),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads"), 65536),
    **dict.fromkeys(("image_size", "height", "width"), 65536),
    **dict.fromkeys(("image_seq_length", "image_seq_len", "num_image_tokens", "num_query_tokens"), 65536),
    **dict.fromkeys(("mm_tokens_per_image", "max_image_tiles", "max_patches", *_OR_NONE), 65536),
    # Lists of widths and heights.
    **dict.fromkeys(("image_grid_pinpoints",), 65536),
    **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"), 1 << 24),
    **dict.fromkeys(("shortest_edge", "longest_edge", "min_pixels", "max_pixels"), 1 << 30),
}
"""The numbers that are sizes: the largest value of each within reason. The least is 1, or 0 for those of `_OR_NONE`."""


def check_numbers(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UsageError if a size in the folder's JSON files is none, or an id of a token is none.

    `config` is the content of config.json. Files that are not there have no wrong numbers.
    """
    contents = [(folder / name, read_object(folder / name)) for name in _FILES if (folder / name).is_file()]
    for file, content in contents:
        for name, value in _sizes(content):
            _check_size(file, name, value)
    generation = folder / "generation_config.json"
    vocabulary = _vocabulary(config)
    for file, content in (
        (folder / "config.json", config),
        (folder / "config.json", config.get("text_config") or {}),
        (generation, read_object(generation) if generation.is_file() else {}),
    ):
        for name, value in content.items():
            if name.endswith(_IDS):
                _check_id(file, name, value, vocabulary)


def _sizes(content: Any) -> Iterator[tuple[str, Any]]:
    """The names and values of all sizes, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            # A patch can have a height and a width.
            if name in _MOST and not isinstance(value, dict):
                yield from ((name, item) for item in _items(value))
            else:
                yield from _sizes(value)


def _items(value: Any) -> Iterator[Any]:
    """The value itself, or what is in a list of values or lists."""
    if isinstance(value, list):
        for item in value:
            yield from _items(item)
    else:
        yield value


def _check_size(file: Path, name: str, value: Any) -> None:
    least = 0 if name in _OR_NONE else 1
    if value is None or (type(value) in (int, float) and least <= value <= _MOST[name]):
        return
    raise UsageError(f"{file}: {name} = {value!r} is no number from {least} to {_MOST[name]}: fetch the file again.")


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    sizes = [part.get("vocab_size") for part in (config, config.get("text_config") or {})]
    return max((size for size in sizes if type(size) is int), default=None)


def _check_id(file: Path, name: str, value: Any, vocabulary: int | None) -> None:
    ids = [number for number in (value if isinstance(value, list) else [value]) if number is not None]
    if any(type(number) is not int for number in ids):
        raise UsageError(
            f"{file}: {name} = {value!r} is no id of a token: write a whole number, or fetch the file again."
        )
    # Models have other ids beyond their vocabulary, for want of such a token. An end that never comes does harm.
    if name.startswith("eos_") and ids and not any(0 <= number < (vocabulary or number + 1) for number in ids):
        size = f", of {vocabulary} tokens" if vocabulary else ""
        raise UsageError(
            f"{file}: {name} = {value!r} is outside the vocabulary{size}, so that answers would have no end: write "
            "the id of the tokenizer's eos_token, or fetch the file again."
        )
