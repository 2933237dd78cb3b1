"""Checkpoint folders of CLOSE, and what both training and evaluation know of its decoders.

FOLDER/decoder/             T5 and tokenizer as transformers writes them (safetensors)
FOLDER/projection.safetensors
FOLDER/adapter.safetensors  what training did to text vectors; evaluation does not need it
FOLDER/close.json           which CLIP, by name and the hash of its weights, and the recipe; written last
"""

from typing import Literal

from dialog_gen.clip.base import WritingTask

CLOSE = "close"
"""The format's name in the registry."""
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
