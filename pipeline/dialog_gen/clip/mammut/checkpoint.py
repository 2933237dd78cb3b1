"""Loads, saves and creates MaMMUT models as `Clip` objects."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from typing_extensions import override

from dialog_gen.clip.base import Clip, TextWriter, WritingPrompt, WritingTask
from dialog_gen.clip.mammut.layout import MODEL_TYPE, PROTOCOL_FILE, WEIGHTS_FILE
from dialog_gen.clip.mammut.model import (
    IMAGE_TOKEN,
    Mammut,
    MammutConfig,
    MammutForConditionalGeneration,
    MammutProcessor,
    register_mammut,
    tokenizer_of,
)
from dialog_gen.clip.text.tokens import TextEncoder, save_tokenizer
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_gen.core.tensors import load_tensors, save_tensors, sha256_of_weights

_PREFIX = "mammut."
_ANSWER_TOKENS = 48
# Alternating questions and answers, as in the training texts.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<image>' }}{% else %}{{ content['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MammutClip(Clip):
    """A CLIP whose `model` is a `Mammut`, which also writes texts."""

    format: ClassVar[str] = MODEL_TYPE
    trained_by: ClassVar[str | None] = "`dialog-train mammut`"

    @override
    def writer(self, device: torch.device | str) -> TextWriter:
        return MammutWriter(self, device)


class MammutWriter:
    """A `TextWriter` that uses the decoder's captioning pass, which reads the patches of an image."""

    tasks: tuple[WritingTask, ...] = ("vqa", "captioning")
    noise: float | None = None
    reads_vectors = False

    def __init__(self, clip: MammutClip, device: torch.device | str) -> None:
        self._mammut: Mammut = clip.to(device).model
        self._device = device
        self._config = self._mammut.config
        self._generator: Any = MammutForConditionalGeneration(self._config, self._mammut).eval()
        self._processor = MammutProcessor(self._config, clip.tokenizer)

    def read(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, H, W) -> the result of `Mammut.read`."""
        with torch.inference_mode():
            return self._mammut.read(pixels.to(self._device))

    def write(self, images: Tensor, prompts: Sequence[WritingPrompt], *, beams: int, max_tokens: int) -> list[str]:
        """Writes one text for each image and prompt. Raises UsageError if a question leaves no room for a text."""
        # A question directly follows the image; a caption begins with the start token of a text.
        ids = [
            self._processor.tokenizer.encode(IMAGE_TOKEN + prompt.question)
            + (self._config.text_start if prompt.task == "captioning" else [])
            for prompt in prompts
        ]
        inputs = self._processor.padded(ids)
        length = inputs["input_ids"].shape[1]
        room = self._config.max_position_embeddings - length
        if room < 1:
            longest = max((prompt.question for prompt in prompts), key=len)
            raise UsageError(f"{longest!r} fills the model's {self._config.max_position_embeddings} tokens.")
        written: Tensor = self._generator.generate(
            **{name: values.to(self._device) for name, values in inputs.items()},
            image=images,
            num_beams=beams,
            max_new_tokens=min(max_tokens, room),
            do_sample=False,
        )
        return [self._processor.tokenizer.decode(row[length:]) for row in written.tolist()]


def save_mammut(clip: MammutClip, folder: Path, changed: Mapping[str, Tensor]) -> None:
    """Writes a folder for `load_mammut`; the tensors in `changed` replace those of the model."""
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
        save_tokenizer(clip.tokenizer, folder)
    state = {**clip.model.state_dict(), **changed}
    save_tensors({_PREFIX + name: value for name, value in state.items()}, folder / WEIGHTS_FILE)


def load_mammut(folder: Path) -> MammutClip:
    """Loads the model of a folder. Raises UsageError if the folder is damaged."""
    # Loading a tokenizer reads config.json too, so transformers must know the model type.
    register_mammut()
    try:
        config: Any = MammutConfig.from_pretrained(folder)
        model = Mammut(config.new_clip(), config)
        state = load_tensors(folder / WEIGHTS_FILE)
        model.load_state_dict({name.removeprefix(_PREFIX): value for name, value in state.items()})
        tokenizer = tokenizer_of(config, folder)
        preprocess = image_transform_v2(PreprocessCfg(**config.preprocess), is_train=False)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - libraries raise errors of any kind for damaged files
        said = str(error).strip().split("\n")
        raise UsageError(f"{folder} is a damaged MaMMUT ({said[min(1, len(said) - 1)].strip()}).") from None
    return MammutClip(
        model=model.eval(),
        preprocess=preprocess,
        tokenizer=tokenizer,
        name=folder.name,
        config=config.clip,
        preprocess_config=config.preprocess,
        weights_sha256=sha256_of_weights(model.state_dict()),
    )


def as_mammut(clip: Clip, cross_attention_every: int, seed: int) -> MammutClip:
    """Returns a MaMMUT unchanged; from a plain CLIP and its tokenizer, makes one with `new_mammut`.

    Raises UsageError like `Mammut`, and if the tokenizer does not mark the end of a text.
    """
    if isinstance(clip, MammutClip):
        return clip
    encoder = TextEncoder(clip.tokenizer)
    if len(encoder.start) != 1 or not encoder.end or encoder.pad_id in encoder.end:
        needed = "one start token, and an end that is no padding"
        raise UsageError(f"{clip.name} cannot become a MaMMUT: its texts need {needed}.")
    return new_mammut(clip, (encoder.start, encoder.end), encoder.pad_id, cross_attention_every, seed)


def new_mammut(
    clip: Clip, frame: tuple[list[int], list[int]], pad_id: int, cross_attention_every: int, seed: int
) -> MammutClip:
    """Makes a MaMMUT that uses the towers of `clip`, without a copy. `seed` determines the random weights.

    `frame` is the token ids that the tokenizer puts before and after a text; `pad_id` is the id of the padding. Raises
    UsageError like `Mammut`.
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
    own: dict[str, Any] = {field.name: getattr(clip, field.name) for field in fields(Clip)}
    own |= {"model": model.eval(), "weights_sha256": sha256_of_weights(model.state_dict())}
    return MammutClip(**own)


def protocol_toml(questions: Sequence[str]) -> str:
    """A protocol as TOML that asks each question independently, since the model was trained on single pairs."""
    lines = [
        'description = "The questions asked most often in the training data."',
        'context = "none"',
        "",
        "[sampling]",
    ]
    lines += ["temperature = 0.7", "top_p = 0.9", f"max_tokens = {_ANSWER_TOKENS}"]
    return "\n".join([*lines, *(f"\n[[turns]]\nuser = {_toml(question)}" for question in questions)]) + "\n"


def _toml(question: str) -> str:
    # Braces would refer to an earlier turn. A JSON string is a TOML string, except for surrogates and DEL.
    escaped = question.replace("{", "{{").replace("}", "}}")
    return json.dumps(escaped, ensure_ascii=False).replace("\x7f", "\\u007f")
