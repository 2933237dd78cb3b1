"""A MaMMUT on disk, as Hugging Face lays models out.

FOLDER/config.json        MammutConfig
FOLDER/generation_config.json, chat_template.jinja
FOLDER/protocol.toml      the questions that a run asks by default; where dialogues were trained on
FOLDER/tokenizer.json ... where the tokenizer is one of Hugging Face's
FOLDER/model.safetensors  written last
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import load_file
from torch import Tensor

from dialog_gen.clip.loader import Clip, sha256_of_weights
from dialog_gen.clip.mammut import PROTOCOL_FILE
from dialog_gen.clip.mammut.model import (
    Mammut,
    MammutConfig,
    MammutForConditionalGeneration,
    register_mammut,
    tokenizer_of,
)
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_gen.core.tensors import save_tensors

WEIGHTS_FILE = "model.safetensors"
_PREFIX = "mammut."
_ANSWER_TOKENS = 48
# Questions and answers behind one another, as in the texts of the training.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<image>' }}{% else %}{{ content['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
)


def save_mammut(clip: Clip, folder: Path, changed: Mapping[str, Tensor]) -> None:
    """Writes FOLDER. `clip`: as `new_mammut` or `load_mammut` gave it; `changed` as in `save_clip`."""
    config = clip.model.config
    folder.mkdir(parents=True, exist_ok=True)
    if config.questions:
        (folder / PROTOCOL_FILE).write_text(protocol_toml(config.questions), encoding="utf-8")
    config.architectures = [MammutForConditionalGeneration.__name__]
    config.save_pretrained(folder)
    generation = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    write_json(folder / "generation_config.json", generation)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    if isinstance(clip.tokenizer, open_clip.tokenizer.HFTokenizer):
        clip.tokenizer.save_pretrained(folder)
    state = {**clip.model.state_dict(), **changed}
    save_tensors({_PREFIX + name: value for name, value in state.items()}, folder / WEIGHTS_FILE)


def load_mammut(folder: Path) -> Clip:
    """As a CLIP, whose `model` is a `Mammut`. Raises UsageError for a damaged folder."""
    # Loading a tokenizer looks at config.json too.
    register_mammut()
    try:
        config: Any = MammutConfig.from_pretrained(folder)
        model = Mammut(config.new_clip(), config)
        state = load_file(folder / WEIGHTS_FILE)
        model.load_state_dict({name.removeprefix(_PREFIX): value for name, value in state.items()})
        tokenizer = tokenizer_of(config, folder)
        preprocess = image_transform_v2(PreprocessCfg(**config.preprocess), is_train=False)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - what libraries raise at damaged files is of any kind
        said = str(error).strip().split("\n")
        raise UsageError(f"{folder} is a damaged MaMMUT ({said[min(1, len(said) - 1)].strip()}).") from None
    return Clip(
        model=model.eval(),
        preprocess=preprocess,
        tokenizer=tokenizer,
        name=folder.name,
        config=config.clip,
        preprocess_config=config.preprocess,
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


def new_mammut(
    clip: Clip, frame: tuple[list[int], list[int]], pad_id: int, cross_attention_every: int, seed: int
) -> Clip:
    """A `Mammut` that takes the towers of `clip`. What is random follows from `seed`.

    `frame`: the token ids that the tokenizer puts before and behind a text; `pad_id`: the one that fills up the rest.
    Raises UsageError as `Mammut` does.
    """
    config = MammutConfig(
        clip=clip.config,
        preprocess=dict(clip.preprocess_config),
        cross_attention_every=cross_attention_every,
        text_start=frame[0],
        text_end=frame[1],
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Mammut(clip.model, config)
    return replace(clip, model=model.eval(), weights_sha256=sha256_of_weights(model.state_dict()))


def protocol_toml(questions: Sequence[str]) -> str:
    """A protocol that asks each question on its own: the model was trained on single pairs."""
    lines = [
        'description = "The questions asked most often in the training data."',
        'context = "none"',
        "",
        "[sampling]",
    ]
    lines += ["temperature = 0.7", "top_p = 0.9", f"max_tokens = {_ANSWER_TOKENS}"]
    return "\n".join([*lines, *(f"\n[[turns]]\nuser = {_toml(question)}" for question in questions)]) + "\n"


def _toml(question: str) -> str:
    # What stands in braces would be an earlier turn. A JSON string is a TOML string, but for surrogates and DEL.
    escaped = question.replace("{", "{{").replace("}", "}}")
    return json.dumps(escaped, ensure_ascii=False).replace("\x7f", "\\u007f")
