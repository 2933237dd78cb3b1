"""Checkpoint folders of CLOSE, and the constants that training and evaluation of its decoders share.

FOLDER/decoder/             T5 and tokenizer as transformers writes them (safetensors)
FOLDER/projection.safetensors  the linear layer that maps a CLIP vector to the prefix
FOLDER/adapter.safetensors  the adapter for text vectors in training; evaluation does not need it
FOLDER/close.json           the name of the CLIP and the hash of its weights, and the recipe; written last
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
"""The prompt of each task, in training and evaluation."""
FOLLOWS, CONTRADICTS = "yes", "no"
"""The decoder's answers in the entailment task."""
