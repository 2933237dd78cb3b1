"""What writes texts about images: a decoder of train/close.py, which reads a CLIP's vectors, or a MaMMUT."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dialog_eval.data.image_index import ImageIndex
from dialog_eval.data.images import ImageVectors, pixel_batches
from dialog_eval.models import Models, Variant
from dialog_gen.clip.loader import Clip, is_mammut, load_clip
from dialog_gen.clip.mammut.model import IMAGE_TOKEN, Mammut, MammutForConditionalGeneration, MammutProcessor
from dialog_gen.core.errors import UsageError
from dialog_train.systems.close.checkpoint import CLOSE_FILE, Close, load_close
from dialog_train.systems.close.config import TaskName
from dialog_train.systems.close.examples import PROMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One text to write."""

    image_id: str
    """The source's."""
    task: TaskName
    question: str = ""
    answer: str = ""
    """Of entailment: the one that is to be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The images that are written about, as far as anyone needs to know them."""

    image_ids: list[str]
    source: ImageIndex
    models: Models
    variant: Variant
    vectors: ImageVectors
    described: Tensor | None
    """(images, D) unit-norm: what the text tower makes of each image's captions; None where there are none."""


class Contexts(NamedTuple):
    """What stands for some images."""

    suffix: str
    """Of the row's label: "" for the images themselves."""
    image_ids: Sequence[str]
    values: Tensor
    """(images, ...)"""


class Writer(Protocol):
    """Writes texts about images."""

    tasks: tuple[TaskName, ...]
    """Those that it was made for."""
    noise: float | None
    """Of its training; see `dialog_train.systems.close.config`."""

    def suffixes(self, has_captions: bool) -> tuple[str, ...]:
        """Those of `contexts`."""
        ...

    def contexts(self, seen: Seen) -> Iterator[Contexts]:
        """All images in each of their guises, a part of them at a time."""
        ...

    def write(self, contexts: Tensor, asked: Sequence[Asked], *, beams: int, max_tokens: int) -> list[str]:
        """One text of each context (N, ...), by beam search, without randomness."""
        ...


class CloseWriter:
    """A decoder that reads image vectors, or the vectors of captions."""

    def __init__(self, close: Close, device: torch.device) -> None:
        self._decoder = close.decoder.to(device)
        self.tasks: tuple[TaskName, ...] = tuple(close.recipe["tasks"])
        self.noise: float | None = close.recipe["noise"]

    def suffixes(self, has_captions: bool) -> tuple[str, ...]:
        """See `Writer`."""
        return ("", ", blind", ", from captions") if has_captions else ("", ", blind")

    def contexts(self, seen: Seen) -> Iterator[Contexts]:
        """See `Writer`."""
        own = seen.vectors.of(seen.variant, seen.image_ids)  # (images, D)
        yield Contexts("", seen.image_ids, own)
        yield Contexts(", blind", seen.image_ids, normalize(own.mean(0, keepdim=True), dim=-1).expand_as(own))
        if seen.described is not None:
            yield Contexts(", from captions", seen.image_ids, seen.described)

    def write(self, contexts: Tensor, asked: Sequence[Asked], *, beams: int, max_tokens: int) -> list[str]:
        """See `Writer`."""
        prompts = [PROMPTS[one.task].format(question=one.question, answer=one.answer) for one in asked]
        return self._decoder.write(contexts, prompts, beams=beams, max_tokens=max_tokens)


class MammutWriter:
    """A MaMMUT: its decoder reads the patches of an image."""

    tasks: tuple[TaskName, ...] = ("vqa", "captioning")
    noise: float | None = None

    def __init__(self, clip: Clip, device: torch.device) -> None:
        mammut: Mammut = clip.model
        self._mammut = mammut.to(device)
        self._device = device
        self._config = mammut.config
        self._generator: Any = MammutForConditionalGeneration(mammut.config, mammut).eval()
        self._processor = MammutProcessor(mammut.config, clip.tokenizer)

    def suffixes(self, has_captions: bool) -> tuple[str, ...]:
        """See `Writer`."""
        return "", ", blind"

    def contexts(self, seen: Seen) -> Iterator[Contexts]:
        """See `Writer`. A part is a batch of images: what is read of one is a hundred times its vector."""
        total: Tensor | None = None
        size = seen.models.batch_size
        for image_ids, pixels in pixel_batches([seen.variant.clip], seen.source, set(seen.image_ids), size):
            with torch.inference_mode():
                read = self._mammut.read(pixels[0].to(self._device))
            total = read.sum(0) if total is None else total + read.sum(0)
            yield Contexts("", image_ids, read)
        assert total is not None  # noqa: S101 - there is an image where something is asked
        for start in range(0, len(seen.image_ids), size):
            image_ids = seen.image_ids[start : start + size]
            yield Contexts(", blind", image_ids, (total / len(seen.image_ids)).expand(len(image_ids), *total.shape))

    def write(self, contexts: Tensor, asked: Sequence[Asked], *, beams: int, max_tokens: int) -> list[str]:
        """See `Writer`."""
        # A question stands behind the image; a caption begins as a text does.
        prompts = [
            self._processor.tokenizer.encode(IMAGE_TOKEN + one.question)
            + (self._config.text_start if one.task == "captioning" else [])
            for one in asked
        ]
        inputs = self._processor.padded(prompts)
        length = inputs["input_ids"].shape[1]
        room = self._config.max_position_embeddings - length
        if room < 1:
            longest = max((one.question for one in asked), key=len)
            raise UsageError(f"{longest!r} fills the model's {self._config.max_position_embeddings} tokens.")
        written: Tensor = self._generator.generate(
            **{name: values.to(self._device) for name, values in inputs.items()},
            image=contexts,
            num_beams=beams,
            max_new_tokens=min(max_tokens, room),
            do_sample=False,
        )
        return [self._processor.tokenizer.decode(row[length:]) for row in written.tolist()]


class Writers:
    """The writers of an evaluation. For all that looks at images, each is a CLIP: its own, or the one that it reads."""

    def __init__(self) -> None:
        self._opened: dict[str, Close | Clip] = {}

    def open(self, folder: str, pretrained: str | None = None) -> Clip:
        """The CLIP of a writer, under the writer's name and hash.

        Raises UsageError as `load_close` and `load_mammut` do, and for a folder that is neither's.
        """
        if pretrained is not None:
            raise UsageError(f"{folder} has its weights itself: leave out --pretrained {pretrained}.")
        if is_mammut(Path(folder)):
            clip = load_clip(folder)
            self._opened[clip.weights_sha256] = clip
            return clip
        if not (Path(folder) / CLOSE_FILE).is_file():
            raise UsageError(f"{folder} writes no text: give a folder that train/close.py or train/mammut.py wrote.")
        close = load_close(Path(folder))
        self._opened[close.weights_sha256] = close
        return replace(close.clip, name=Path(folder).name, weights_sha256=close.weights_sha256)

    def of(self, variant: Variant, device: torch.device) -> Writer:
        """The writer that was opened as this model, on the device."""
        opened = self._opened[variant.clip.weights_sha256]
        return CloseWriter(opened, device) if isinstance(opened, Close) else MammutWriter(opened, device)
