"""CLOSE (arXiv 2211.09778): a text decoder that reads the vectors of a frozen CLIP.

FOLDER/decoder/             T5 and tokenizer as transformers writes them (safetensors)
FOLDER/projection.safetensors
FOLDER/adapter.safetensors  what training did to text vectors; evaluation does not need it
FOLDER/close.json           which CLIP, by name and the hash of its weights, and the recipe; written last
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from typing_extensions import override

from dialog_gen.clip.base import FORMATS, Clip, ClipFormat, WritingTask

CLOSE = "close"
CLOSE_FILE = "close.json"
AdapterKind = Literal["none", "mean", "linear", "cov"]
PROMPTS: dict[WritingTask, str] = {
    "vqa": "question: {question}",
    "captioning": "caption:",
    "entailment": "entailment: {question} {answer}",
}
"""The decoder's prompt of each task, in training and evaluation."""
FOLLOWS, CONTRADICTS = "yes", "no"
"""What it writes of a statement, in entailment."""


class CloseFormat(ClipFormat):
    """The CLIP whose vectors it reads is not in the folder: search that one."""

    kind = "CLOSE decoder"
    can = frozenset({"generate texts"})

    @override
    def recognises(self, folder: Path) -> bool:
        return (folder / CLOSE_FILE).is_file()

    @override
    def load(self, folder: Path) -> Clip:
        from dialog_gen.clip.close.checkpoint import load_close

        return load_close(folder)

    @override
    def save(self, clip: Any, folder: Path, changed: Mapping[str, Any]) -> None:
        from dialog_gen.clip.close.checkpoint import save_close

        save_close(clip, folder, changed)


FORMATS.register(CLOSE)(CloseFormat())
