"""What a run would ask a model: its prompts, the tokens of images of usual sizes, its engines. Loads no weights."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.visible import visible
from dialog_gen.engines.base import ENGINES, EngineEntry, EngineOptions
from dialog_gen.models.checks import check_prompts
from dialog_gen.models.context import check_context, fitting_context, needed, own_context
from dialog_gen.models.image_trial import try_image
from dialog_gen.models.processor import prompt_ids
from dialog_gen.models.quantized import UnreadableHereError
from dialog_gen.models.registry import GeneratorModel, resolve_model
from dialog_gen.protocols.protocol import Conversation, load_protocol
from dialog_gen.sources.pixels import PixelLimits

_SIZES = ((336, 336), (640, 480), (1024, 1024), (1920, 1080))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """A model that passed all checks."""

    name: str
    architecture: str
    protocol: str
    prompts: tuple[str, ...]
    """One for each turn, with a placeholder for the image and for each earlier answer."""
    tokens: dict[str, int]
    """Width x height of an image in pixels -> the tokens of the first prompt with it."""
    context: int | None
    """The tokens of prompt, image and answers in a run."""
    own_context: int | None
    """The model's own maximum."""
    max_pixels: int | None
    thinks: bool
    """Whether an answer begins with thoughts, which are removed."""
    max_tokens: int
    """The tokens of an answer at most, with its thoughts."""
    engines: dict[str, str | None]
    """Each engine that runs models itself: None if it can read this one here, else why it cannot."""

    def to_json(self) -> dict[str, Any]:
        """The report as `dialog-gen models --check MODEL --json` prints it."""
        return asdict(self)

    def __str__(self) -> str:
        readers = [name for name, problem in self.engines.items() if problem is None]
        lines = [f"{self.name} ({self.architecture}) can be used{'' if readers else ', though not on this machine'}"]
        lines.append(f"  engines: {', '.join(readers) or 'none here'}")
        lines += [f"  not with {name}: {problem}" for name, problem in self.engines.items() if problem is not None]
        lines.append(f"  protocol: {self.protocol}")
        lines += [f"  prompt of turn {number}: {prompt!r}" for number, prompt in enumerate(self.prompts, 1)]
        for size, count in self.tokens.items():
            lines.append(f"  prompt with an image of {size}: {count_of(count, 'token')}")
        lines.append(f"  context: {self.context or 'any'} tokens (the model's own: {self.own_context or 'unknown'})")
        lines.append(f"  answers: up to {self.max_tokens} tokens")
        if self.thinks:
            lines[-1] += ", with the thoughts before them, which are removed"
        if self.max_pixels:
            lines.append(f"  larger images are made smaller to {self.max_pixels} pixels (--max-pixels)")
        return "\n".join(map(visible, lines))


def model_report(name: str) -> ModelReport:
    """Checks a model by name, Hugging Face id or folder, of which only small files are fetched.

    Raises UsageError if no engine could use it.
    """
    model = resolve_model(name, download=False)
    protocol = load_protocol(model.default_protocol)
    check_prompts(model, protocol)
    try_image(model, [protocol], PixelLimits(most=model.max_pixels))
    conversations = protocol.rehearsal([f"[answer {number}]" for number in range(1, len(protocol.turns) + 1)])
    tokens = {f"{width} x {height}": _length(model, conversations[0], (width, height)) for width, height in _SIZES}
    max_tokens = model.sampling_of(protocol).max_tokens
    wanted = needed(model, protocol, max_tokens, PixelLimits(most=model.max_pixels))
    context = model.max_model_len or fitting_context(model, wanted)
    check_context(model, wanted, context)
    return ModelReport(
        name=model.name,
        architecture=str((model.config.get("architectures") or [model.config["model_type"]])[0]),
        protocol=Path(protocol.name).stem,
        prompts=tuple(model.render(messages) for messages in conversations),
        tokens=tokens,
        context=context,
        own_context=own_context(model),
        max_pixels=model.max_pixels,
        thinks=model.thinks,
        max_tokens=max_tokens,
        engines=_engines(model),
    )


def _engines(model: GeneratorModel) -> dict[str, str | None]:
    """Why each engine that runs models itself cannot read this one here; None if it can.

    Raises UsageError if no installed engine could read it, on any machine.
    """
    entries = {name: entry for name, entry in ENGINES.own().items() if entry.needs == "folder"}
    problems = {name: _problem(entry, model) for name, entry in entries.items()}
    installed = {name: problems[name] for name, entry in entries.items() if entry.installed()}
    if all(error is not None and not isinstance(error, UnreadableHereError) for error in installed.values()):
        reasons = [str(error).rstrip(".") for error in installed.values()]
        raise UsageError(f"no engine can use {model.name}: {'; '.join(reasons)}.")
    return {name: None if error is None else str(error) for name, error in problems.items()}


def _problem(entry: EngineEntry, model: GeneratorModel) -> UsageError | None:
    try:
        entry.check(model, EngineOptions())
        entry.check_here(model, EngineOptions())
    except UsageError as error:
        return error
    return None


def _length(model: GeneratorModel, messages: Conversation, size: tuple[int, int]) -> int:
    try:
        return len(prompt_ids(model, messages, [Image.new("RGB", size)], PixelLimits(most=model.max_pixels)))
    # Processors raise errors of any kind.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"the processor of {model.name} fails: {problem}. The folder needs the files of its tokenizer and image "
            "processor."
        ) from error
