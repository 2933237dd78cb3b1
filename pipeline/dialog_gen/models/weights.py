"""Checks the weights of a model folder: safetensors, all of them, and whole. Reads only their headers."""

from pathlib import Path
from typing import Any

from dialog_gen.core.checksums import check_checksums
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import check_regular
from dialog_gen.core.plural import count_of
from dialog_gen.models.json_files import read_object

ADAPTER = "adapter_config.json"
"""The settings of an adapter that peft has trained, such as LoRA."""
_SINGLE = "model.safetensors"
_INDEX = f"{_SINGLE}.index.json"


def check_weights(folder: Path) -> None:
    """Raises UsageError if the folder has no safetensors, lacks some, or has some that are damaged or cut.

    Also if it has checksums and they differ, or if it holds an adapter, too: transformers would apply it where peft is
    installed, and vLLM would not.
    """
    if (folder / ADAPTER).is_file():
        raise UsageError(
            f"{folder} holds an adapter ({ADAPTER}) beside the weights: merge it into them (peft's merge_and_unload), "
            "or, if it is merged, move the adapter's files elsewhere."
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        found = (
            f"only pickled weights ({', '.join(pickled)}), which can run code when read" if pickled else "no weights"
        )
        raise UsageError(f"{folder} holds {found}: safetensors are needed. Convert them, or choose another revision.")
    for name, tensors in _parts(folder).items():
        _check_whole(folder / name, tensors)
    check_checksums(folder)


def check_index(folder: Path) -> None:
    """Raises UsageError if transformers does not find the weights that are in a folder; vLLM reads any safetensors."""
    index, files = folder / _INDEX, sorted(folder.glob("*.safetensors"))
    if (folder / _SINGLE).exists():
        return
    if index.is_file():
        if not isinstance(read_object(index).get("metadata"), dict):
            raise UsageError(
                f"{index} has no metadata, without which transformers does not read it: add "
                '"metadata": {} to it, or use another engine.'
            )
    elif len(files) == 1:
        raise UsageError(
            f"{folder} has its weights in {files[0].name}, and transformers reads {_SINGLE}: rename the file, or use "
            "another engine."
        )
    elif files:
        raise UsageError(
            f"{folder} lacks {_INDEX}, without which transformers does not find the weights in its "
            f"{count_of(len(files), 'file')}: fetch it, or use another engine."
        )


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors in a folder's weights, as far as it has safetensors. Maps the files."""
    from safetensors import safe_open

    shapes = dict[str, tuple[int, ...]]()
    for name in _parts(folder):
        with safe_open(folder / name, "np") as content:
            shapes |= {tensor: tuple(content.get_slice(tensor).get_shape()) for tensor in content.keys()}  # noqa: SIM118
    return shapes


def _parts(folder: Path) -> dict[str, set[str]]:
    """The files of the weights, each with its tensors by the index. Raises UsageError if one is missing."""
    index = folder / _INDEX
    if (folder / _SINGLE).exists():
        return {_SINGLE: set()}
    if not index.is_file():
        return {file.name: set() for file in sorted(folder.glob("*.safetensors"))}
    parts: Any = read_object(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
        raise UsageError(f"{index} says of no weight where it is: fetch it again.")
    names = sorted(set(parts.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UsageError(
            f"{folder} lacks {len(missing)} of its {count_of(len(names), 'file')} of weights, such as {missing[0]}: "
            "fetch them again."
        )
    return {name: {tensor for tensor, part in parts.items() if part == name} for name in names}


def _check_whole(file: Path, tensors: set[str]) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(file)
        with safe_open(file, "np") as content:
            found = set(content.keys())
        if found and tensors <= found:
            return
        problem = "it has no tensors" if not found else f"it lacks the tensor {min(tensors - found)} of the index"
    # Also checks that the file is as long as its header says.
    except (OSError, SafetensorError) as error:
        problem = str(error).splitlines()[0]
    raise UsageError(f"{file} is no whole safetensors file ({problem}): fetch it again.")
