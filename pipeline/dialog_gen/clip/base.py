"""What a loaded model to search with can do, what a format of checkpoints is, and the registries of both.

A new format is one file (or folder) here, or an entry point of the group `dialog_gen.clip_formats`:

    @FORMATS.register("my-format")
    class MyFormat(ClipFormat):
        kind, can = "model of mine", frozenset({"embed images", "embed texts"})
        def recognises(self, folder): ...
        def load(self, folder): ...
        def save(self, clip, folder, changed): ...
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
"""What a caller may need of a model. "be tuned": its image and text tower are those of a plain CLIP, for a training."""
SEARCH: tuple[Capability, ...] = ("embed images", "embed texts")
TUNING: tuple[Capability, ...] = ("be tuned",)
GENERATION: tuple[Capability, ...] = ("generate texts",)
WritingTask = Literal["vqa", "captioning", "entailment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingPrompt:
    """What to write about an image."""

    task: WritingTask
    question: str = ""
    answer: str = ""
    """For entailment: the answer to be judged."""


class TextWriter(Protocol):
    """Writes texts about images. `Clip.writer` gives it."""

    tasks: tuple[WritingTask, ...]
    """Those that the model was trained for."""
    noise: float | None
    """The noise on text vectors in its training; None where there is no such noise."""
    reads_vectors: bool
    """Whether it reads the unit-norm vector of an image, or of a text in its place; otherwise it reads pixels."""

    def read(self, pixels: "Tensor") -> "Tensor":
        """Pixels (N, 3, H, W) -> what `write` takes of each image (N, ...). Only for writers that read pixels."""
        ...

    def write(self, images: "Tensor", prompts: Sequence[WritingPrompt], *, beams: int, max_tokens: int) -> list[str]:
        """One text for each image (N, ...) and prompt, by beam search, without randomness.

        Raises UsageError for a prompt that leaves no room for a text.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A text tower with its share in a model's text vectors."""

    clip: "Clip"
    """Whose text configuration and weights the tower has."""
    tower: "TextTower"
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A loaded model with what belongs to it. Models of other formats than open_clip's are subclasses."""

    format: ClassVar[str] = "open_clip"
    """Name in `FORMATS`."""
    trained_by: ClassVar[str | None] = None
    """The script that trains such a model, where the training of a plain CLIP would spoil it."""

    model: Any
    """open_clip's `CLIP` or `CustomTextCLIP`, or a module with its `encode_image`, `encode_text`, `visual` and
    `logit_scale`; float32, in evaluation mode."""
    preprocess: Any
    """PIL image -> (3, H, W), without augmentation."""
    tokenizer: Any
    """One of open_clip's: list of texts -> token ids (N, context length)."""
    name: str
    config: dict[str, Any]
    """open_clip's model configuration."""
    preprocess_config: dict[str, Any]
    weights_sha256: str
    """Hash of all tensors with their names: it tells models apart, wherever they were loaded from."""

    @property
    def kind(self) -> str:
        """What messages call such a model."""
        return FORMATS.get(self.format).kind

    @property
    def beta(self) -> float | None:
        """The share of `untuned` in the text vectors of a model that is a blend of two; None for any other."""
        return None

    @property
    def untuned(self) -> "Clip | None":
        """The model that this one blends with, the baseline of a sweep; None where there is none."""
        return None

    def with_beta(self, beta: float) -> Self:
        """The same blend with another share. Raises UsageError for a model that is no blend."""
        raise UsageError(f"{self.name} has one text tower: no share (beta = {beta:g}) can be set.")

    def to(self, device: "torch.device | str") -> Self:
        """Moves the model, in place."""
        self.model.to(device)
        return self

    def embed_images(self, pixels: "Tensor") -> "Tensor":
        """Pixels (N, 3, H, W), preprocessed and on the model's device -> unit-norm image vectors (N, D) in float32.

        Raises UsageError where a vector is not finite.
        """
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            vectors = normalize(self.model.encode_image(pixels).float(), dim=-1)
        if not bool(vectors.isfinite().all()):
            raise UsageError(f"{self.name} gives vectors that are not finite: its weights are damaged.")
        return vectors

    def text_parts(self) -> list[TextPart]:
        """The text towers whose vectors `mixed` adds up. Raises UsageError for a text tower of an unknown kind."""
        return [self.own_text_part()]

    def own_text_part(self) -> TextPart:
        """The model's own text tower, by reference. Raises UsageError for one of an unknown kind."""
        from dialog_gen.clip.text.tower import TextTower

        try:
            return TextPart(clip=self, tower=TextTower(self.model), share=1.0)
        except TypeError as error:
            raise UsageError(f"{self.name} cannot be evaluated: {error}.") from None

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> "Tensor":
        """Unit-norm vectors (N, D) of texts, in float32 on the model's device; long texts are cut to the context.

        Raises UsageError for a text tower of an unknown kind, and where a vector is not finite.
        """
        from dialog_gen.clip.text.tokens import TextEncoder
        from dialog_gen.clip.text.tower import encode_ids, mixed

        encoder, parts = TextEncoder(self.tokenizer), self.text_parts()
        ids, _ = encoder(texts)
        vectors = [encode_ids(part.tower.eval(), encoder, ids, self.name, batch_size=batch_size) for part in parts]
        return mixed([part.share for part in parts], vectors)

    def writer(self, device: "torch.device | str") -> TextWriter:
        """The model as a writer of texts, on the device. Raises UsageError for one that writes none."""
        raise UsageError(f"{self.name} {_LACKS['generate texts']}: a {self.kind} only embeds.")


class ClipFormat(ABC):
    """How checkpoints of one kind lie in a folder."""

    kind: ClassVar[str]
    """What messages call a model of this format, such as "MaMMUT"."""
    can: ClassVar[frozenset[Capability]]
    """What its models can do."""

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether the folder holds a checkpoint of this format. A folder may be one of two formats."""

    def check(self, folder: Path) -> None:  # noqa: B027 - most formats have nothing that is quick to check
        """Raises UsageError where `load` would for the small files alone; loads no weights."""

    @abstractmethod
    def load(self, folder: Path) -> Clip:
        """The model, on the CPU. Raises UsageError for a damaged folder."""

    @abstractmethod
    def save(self, clip: Any, folder: Path, changed: "Mapping[str, Tensor]") -> None:
        """Writes what `load` reads, the weights last; `changed` takes the place of the model's own tensors.

        Raises OSError or SafetensorError for what the disk refuses.
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
    """Raises UsageError where a model of this format lacks what is needed; `name` is the model's."""
    for need in needs:
        if need not in form.can:
            able = " or a ".join(sorted(other.kind for other in FORMATS.all().values() if need in other.can))
            raise UsageError(f"{name} {_LACKS[need]}, being a {form.kind}: give a {able}.")
