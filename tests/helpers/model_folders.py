"""Model folders without weights, for what is read before an engine starts."""

import json
from pathlib import Path
from typing import Any

from dialog_gen.models.templates import LLAVA_CHAT_TEMPLATE

LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": {}}
TOKENIZER = json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})
BLIP2 = {"architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2"}


def weights(numbers: str = "w", name: str = "w") -> str:
    """A safetensors file with one tensor of bytes, as text."""
    header = json.dumps({name: {"dtype": "U8", "shape": [len(numbers)], "data_offsets": [0, len(numbers)]}})
    return len(header).to_bytes(8, "little").decode() + header + numbers


def model_folder(folder: Path, config: Any = LLAVA, **others: str | None) -> Path:
    """A folder of one weight and a tokenizer of one word.

    `others` are further files' texts, None for a file that is left out.
    """
    texts = {
        "config.json": json.dumps(config),
        "model.safetensors": weights(),
        "tokenizer.json": TOKENIZER,
        "chat_template.jinja": LLAVA_CHAT_TEMPLATE,
    } | {name.replace("__", "."): text for name, text in others.items()}
    folder.mkdir()
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
    return folder
