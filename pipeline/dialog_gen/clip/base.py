"""The interfaces of a loaded CLIP model and of a checkpoint format, and the registries of both.

A new format is one file (or folder) here, or an entry point of the group `dialog_gen.clip_formats`:

    class MyFormat(ClipFormat):
        kind, can = "model of mine", frozenset({"embed images", "embed texts"})
        def recognises(self, folder): ...
        def load(self, folder): ...
        def save(self, clip, folder, changed): ...

    FORMATS.register("my-format")(MyFormat())
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dialog_gen.clip.text.tower import TextTower

Capability = Literal["embed images", "embed texts", "generate texts", "be tuned"]
"""What a caller may need from a model. "be tuned": a training can start from its image and text towers."""
SEARCH: tuple[Capability, ...] = ("embed images", "embed texts")
TUNING: tuple[Capability, ...] = ("be tuned",)
GENERATION: tuple[Capability, ...] = ("generate texts",)
WritingTask = Literal["vqa", "captioning", "entailment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingPrompt:
    """The task and the texts of a prompt about an image."""

    task: WritingTask
    question: str = ""
    answer: str = ""
    """The answer to judge, in the entailment task."""


class TextWriter(Protocol):
    """Writes texts about images. `Clip.writer` returns one."""

    tasks: tuple[WritingTask, ...]
    """The tasks that the model was trained for."""
    noise: float | None
    """The noise on text vectors in its training; None if there was no such noise."""
    reads_vectors: bool
    """Whether it reads unit-norm vectors (of images, or of texts in their place); otherwise it reads pixels."""

    def read(self, pixels: "Tensor") -> "Tensor":
        """Pixels (N, 3, H, W) -> the images as `write` takes them (N, ...). Only for writers that read pixels."""
        ...

    def write(self, images: "Tensor", prompts: Sequence[WritingPrompt], *, beams: int, max_tokens: int) -> list[str]:
        """Writes one text for each image (N, ...) and prompt, by deterministic beam search.

        Raises UsageError if a prompt leaves no room for a text.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A text tower and its share in a model's text vectors."""

    clip: "Clip"
    """The model to which the tower belongs."""
    tower: "TextTower"
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A loaded model with its tokenizer, preprocessing and configuration. Other formats than open_clip subclass it."""

    format: ClassVar[str] = "open_clip"
    """Name in `FORMATS`."""
    trained_by: ClassVar[str | None] = None
    """The script that trains such a model, if the training of a plain CLIP would damage it."""

    model: Any
    """open_clip's `CLIP` or `CustomTextCLIP`, or a module with the same `encode_image`, `encode_text`, `visual` and
    `logit_scale`; float32, in evaluation mode."""
    preprocess: Any
    """PIL image -> (3, H, W), without augmentation."""
    tokenizer: Any
    """One of open_clip's tokenizers: list of N texts -> token ids (N, context length)."""
    name: str
    config: dict[str, Any]
    """open_clip's model configuration."""
    preprocess_config: dict[str, Any]
    weights_sha256: str
    """Hash of all tensors with their names: it identifies the model, wherever it was loaded from."""

    @property
    def kind(self) -> str:
        """The word for such a model in messages."""
        return FORMATS.get(self.format).kind

    @property
    def beta(self) -> float | None:
        """The share of `untuned` in the text vectors, if the model blends two models; otherwise None."""
        return None

    @property
    def untuned(self) -> "Clip | None":
        """The base model of a blend, the baseline of a sweep over beta; None if the model is not a blend."""
        return None

    def with_beta(self, beta: float) -> Self:
        """The same blend with another share. Raises UsageError if the model is not a blend."""
        raise UsageError(f"{self.name} has one text tower: no share (beta = {beta:g}) can be set.")

    def for_questions(self) -> "Clip":
        """The model as it reads texts that were made of a question; most models read all texts alike."""
        return self

    def to(self, device: "torch.device | str") -> Self:
        """Moves the model to a device, in place; returns the model."""
        self.model.to(device)
        return self

    def embed_images(self, pixels: "Tensor") -> "Tensor":
        """Pixels (N, 3, H, W), preprocessed and on the model's device -> unit-norm image vectors (N, D) in float32.

        Raises UsageError if a vector is not finite.
        """
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            vectors = normalize(self.model.encode_image(pixels).float(), dim=-1)
        if not bool(vectors.isfinite().all()):
            raise UsageError(f"{self.name} gives vectors that are not finite: its weights are damaged.")
        return vectors

    def text_parts(self) -> list[TextPart]:
        """The text towers and their shares, for `mixed`. Raises UsageError if a text tower is of an unknown kind."""
        return [self.own_text_part()]

    def own_text_part(self) -> TextPart:
        """The model's own text tower, not a copy. Raises UsageError if it is of an unknown kind."""
        from dialog_gen.clip.text.tower import TextTower

        try:
            return TextPart(clip=self, tower=TextTower(self.model), share=1.0)
        except TypeError as error:
            raise UsageError(f"{self.name} cannot be evaluated: {error}.") from None

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> "Tensor":
        """Unit-norm vectors (N, D) of texts, in float32 on the model's device; long texts are truncated.

        Raises UsageError if the text tower is of an unknown kind, or if a vector is not finite.
        """
        from dialog_gen.clip.text.tokens import TextEncoder
        from dialog_gen.clip.text.tower import encode_ids, mixed

        encoder, parts = TextEncoder(self.tokenizer), self.text_parts()
        ids, _ = encoder(texts)
        vectors = [encode_ids(part.tower.eval(), encoder, ids, self.name, batch_size=batch_size) for part in parts]
        return mixed([part.share for part in parts], vectors)

    def writer(self, device: "torch.device | str") -> TextWriter:
        """Moves the model to the device and returns its text writer. Raises UsageError if it cannot write texts."""
        raise UsageError(f"{self.name} {_LACKS['generate texts']}: a {self.kind} only embeds.")


class ClipFormat(ABC):
    """A format of checkpoint folders: recognises, checks, loads and saves them."""

    kind: ClassVar[str]
    """The word for a model of this format in messages, such as "MaMMUT"."""
    can: ClassVar[frozenset[Capability]]
    """What models of this format can do."""
    free_files: ClassVar[frozenset[str]] = frozenset()
    """Files of a folder that users may change; they have no checksum."""

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether the folder is a checkpoint of this format. A folder may have several formats."""

    def check(self, folder: Path) -> None:  # noqa: B027 - most formats have nothing that is quick to check
        """Checks the small files without loading weights. Raises UsageError if `load` would raise it for them."""

    @abstractmethod
    def load(self, folder: Path) -> Clip:
        """Loads the model, on the CPU. Raises UsageError if the folder is damaged."""

    @abstractmethod
    def save(self, clip: Any, folder: Path, changed: "Mapping[str, Tensor]") -> None:
        """Writes a folder for `load`, the weights last; the tensors in `changed` replace those of the model.

        Raises OSError or SafetensorError if the folder cannot be written.
        """


FORMATS: Registry[ClipFormat] = Registry(
    "CLIP format", "dialog_gen.clip", base=ClipFormat, group="dialog_gen.clip_formats"
)
CLIP_MODELS: Registry[Path] = Registry("CLIP model", "dialog_gen.clip", base=Path, group="dialog_gen.clip_models")
"""Shipped models: name -> checkpoint folder."""

_LACKS: dict[Capability, str] = {
    "embed images": "embeds no images",
    "embed texts": "embeds no texts",
    "generate texts": "writes no text",
    "be tuned": "cannot be tuned as a CLIP",
}


def check_capabilities(name: str, form: ClipFormat, needs: Sequence[Capability]) -> None:
    """Raises UsageError if models of this format lack one of `needs`; `name` is the model's name in the message."""
    for need in needs:
        if need not in form.can:
            able = " or a ".join(sorted(other.kind for other in FORMATS.all().values() if need in other.can))
            raise UsageError(f"{name} {_LACKS[need]}, being a {form.kind}: give a {able}.")
