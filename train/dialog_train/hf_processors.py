"""The image processor and the tokenizer of an exported CLIP, as Hugging Face's transformers reads them.

Both do what open_clip does, with these exceptions, which no setting of transformers expresses:

- open_clip's tokenizer first repairs texts with ftfy and decodes HTML entities: curly quotes become straight ones,
  ligatures and full-width letters plain ones, letters that were decoded wrongly what they were, control characters
  nothing, and "&amp;" becomes "&". `CLIPTokenizer` does none of this; it cleans white space and case. It reads
  "<|endoftext|>" in a text as the end.
- `CLIPImageProcessor` may round a resized pixel to the next grey level (`CLIPImageProcessorPil`, which `backend="pil"`
  gives, does not), and where the side to crop exceeds the crop by an odd number of pixels, it may cut one pixel before
  open_clip does. An image with transparency must be converted to RGB first.
"""

from pathlib import Path
from typing import Any

from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from transformers import CLIPTokenizer

from dialog_gen.clip.base import Clip
from dialog_gen.clip.text.tokens import save_tokenizer
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json

PROCESSOR_FILE = "preprocessor_config.json"
# Pillow's resampling constants.
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}
# open_clip's names for the start and the end of a text -> those that `CLIPTokenizer` recognises.
_SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
_SPECIAL_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
_PROBES = ("a photo of a cat", "Two DOGS, and 3 birds!")


def image_processor(clip: Clip) -> dict[str, Any]:
    """The settings of `CLIPImageProcessor` that resize, crop and normalize as the model's own transform does.

    Raises UsageError for a transform that they cannot express.
    """
    config = clip.preprocess_config
    size, mode = config["size"], config.get("resize_mode") or "shortest"
    height, width = (size, size) if isinstance(size, int) else size
    if mode not in ("shortest", "squash"):
        raise _refused(clip, f'CLIPImageProcessor has no resize_mode = "{mode}", only "shortest" and "squash" can be')
    if height != width:
        raise _refused(clip, f"it reads images of {height} x {width} pixels, and CLIPModel only square ones")
    if config["interpolation"] not in _RESAMPLE:
        raise _refused(clip, f"its interpolation is {config['interpolation']!r}, known: {', '.join(_RESAMPLE)}")
    square = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": square if mode == "squash" else {"shortest_edge": height},
        "resample": _RESAMPLE[config["interpolation"]],
        "do_center_crop": mode == "shortest",
        "crop_size": square,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(config["mean"]),
        "image_std": list(config["std"]),
        "do_convert_rgb": True,
    }


def hf_tokenizer(clip: Clip) -> Any:
    """The tokenizer for transformers with the ids of the model's own: a `CLIPTokenizer` for CLIP's.

    Raises UsageError for a tokenizer that transformers cannot express.
    """
    own: Any = clip.tokenizer
    if getattr(own, "reduction_fn", None) is not None:
        raise _refused(clip, "its tokenizer leaves out words of long texts (reduction_mask); transformers cuts them")
    if type(own) is SimpleTokenizer:
        if own.clean_fn is not get_clean_fn("lower") or len(own.all_special_ids) != len(_SPECIAL):
            raise _refused(clip, "its tokenizer has another cleaning or other special tokens than CLIP's")
        merges: Any = list(own.bpe_ranks)
        found: Any = CLIPTokenizer(
            vocab={_SPECIAL.get(token, token): number for token, number in own.encoder.items()},
            merges=merges,
            model_max_length=own.context_length,
        )
    elif isinstance(clip.tokenizer, HFTokenizer):
        found = own.tokenizer
    else:
        raise _refused(clip, f"its tokenizer is of an unknown kind ({type(own).__name__})")
    length = own.context_length
    for probe in _PROBES:
        ids = found(probe, truncation=True, max_length=length, padding="max_length")["input_ids"]
        # The tokens after a text's end differ in their padding, which no causal tower sees.
        text = len(found(probe, truncation=True, max_length=length)["input_ids"])
        if ids[:text] != own([probe])[0].tolist()[:text]:
            raise _refused(clip, f"its tokenizer cleans texts, such as {probe!r}, in a way that transformers does not")
    return found


def save_processors(clip: Clip, folder: Path) -> None:
    """Writes the image processor's settings and the tokenizer's files into `folder`, which it creates.

    Raises UsageError for what transformers cannot express, OSError if the folder cannot be written.
    """
    processor, tokenizer = image_processor(clip), hf_tokenizer(clip)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PROCESSOR_FILE, processor)
    save_tokenizer(tokenizer, folder)
    if isinstance(tokenizer, CLIPTokenizer):
        # vocab.json, merges.txt and the map are for programs that do not read tokenizer.json.
        tokenizer.backend_tokenizer.model.save(str(folder))
        write_json(folder / "special_tokens_map.json", {name: str(getattr(tokenizer, name)) for name in _SPECIAL_ROLES})


def _refused(clip: Clip, why: str) -> UsageError:
    return UsageError(f"{clip.name} cannot become a CLIPModel: {why}.")
