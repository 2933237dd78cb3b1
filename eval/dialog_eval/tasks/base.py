"""What an evaluation task is, and the registry of all.

A module of this folder, or of another package through the entry-point group `dialog_eval.tasks`, defines one:

    @TASKS.register("retrieval")
    class Retrieval(TaskDefinition[RetrievalOptions]): ...

The command `dialog-eval retrieval` and `dialog_eval.evaluate("retrieval", ...)` are made of it. Such a module imports
torch and what needs it inside functions only: `dialog-eval --help` imports them all.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from dialog_eval.options import Common, parameters_of
from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress
from dialog_gen.core.registry import Registry

if TYPE_CHECKING:
    from dialog_eval.data.image_index import ImageIndex
    from dialog_eval.data.images import ImageVectors
    from dialog_eval.models import Models
    from dialog_eval.results import Entry, Reference
    from dialog_gen.clip.loader import Clip

Options = TypeVar("Options")

_DIGITS = 12


class EvaluationTask(Protocol):
    """Questions about images, read and ready to be asked, and what counts as right."""

    @property
    def image_ids(self) -> Collection[str]:
        """The ids, in the `ImageIndex`, of the images that are needed."""
        ...

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> "tuple[list[Entry], list[Reference]]":
        """The entries of all variants, in the order of `models.variants`, and the figures to print beside them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """How the results of a task are shown in tables and plots."""

    task: str
    """`Entry.task` of the results."""
    title: str
    """Begins the heading of a section, such as "Visual question answering"."""
    short_title: str = ""
    """Stands before a measure on the axis of a plot, such as "VQA"."""
    headlines: Mapping[str, str] = field(default_factory=dict[str, str])
    """The measures that tell most, for the overview and for plots -> the name of their column in the overview, in which
    {protocol} is filled in. Where a section has none of them, its first measure is plotted."""


class TaskDefinition(ABC, Generic[Options]):
    """One task of `dialog-eval`. An instance is one evaluation's, with its options."""

    description: ClassVar[str]
    """The help text of the command."""
    options_type: ClassVar[type[Any]]
    """A frozen, keyword-only dataclass. A field is an option of the command: `Annotated[type, typer.Option(help=...)]`.
    Options of all evaluations (`dialog_eval.options.Common`) cannot be redefined."""
    presentations: ClassVar[Sequence[Presentation]]
    """How the results are shown that the task makes, one for each `Entry.task`."""
    in_sweep: ClassVar[bool] = False
    """`dialog-eval sweep` has the task's options, too, and measures it where its required options are given. Such a
    task has at least one required option."""

    def __init__(self, options: Options) -> None:
        """Raises UsageError for options that are wrong by themselves; nothing is read yet."""
        self.options = options

    @abstractmethod
    def load(self, index: "ImageIndex") -> "list[EvaluationTask]":
        """Reads the files. Raises UsageError for files that do not fit, and for images that the index lacks."""

    def open_model(self, name: str, pretrained: str | None) -> "Clip | None":
        """The model of that name, for tasks that measure other models than CLIPs; None: the usual loader opens it.

        Raises UsageError for a model that the task cannot measure.
        """
        return None


_RESERVED = parameters_of(Common).keys() | {"task", "out", "json_output", "blends", "on_progress"}

TASKS = Registry[type[TaskDefinition[Any]]]("evaluation task", "dialog_eval.tasks", base=TaskDefinition, classes=True)


def get_task(name: str) -> type[TaskDefinition[Any]]:
    """The task of that name. Raises UsageError for an unknown one, and where another package's cannot be used."""
    found: Any = TASKS.get(name)
    # Another package may have registered anything.
    if not (isinstance(found, type) and issubclass(found, TaskDefinition)):
        raise UsageError(f"evaluation task {name!r} is no TaskDefinition of dialog_eval.tasks.base.")
    if taken := _RESERVED & parameters_of(found.options_type).keys():
        raise UsageError(f"evaluation task {name!r}: its option {min(taken)!r} is one of all evaluations; rename it.")
    return found


def presentation_of(task: str) -> Presentation:
    """How results are shown. Those of a task that is not installed here are shown under its name."""
    for name in TASKS.names():
        try:
            definition = get_task(name)
        except UsageError:
            continue
        for presentation in definition.presentations:
            if presentation.task == task:
                return presentation
    return Presentation(task=task, title=task)


def counter(on_progress: OnProgress, stage: str, total: int) -> Callable[[float], None]:
    """A function that is called with the number done since its last call, for work that counts so."""
    done = 0.0

    def advance(count: float) -> None:
        nonlocal done
        done += count
        on_progress(stage, round(done), total, stage)

    advance(0)
    return advance


def dataset_name(*files: Path) -> str:
    """The stem of the first file and 12 hexadecimal digits of the SHA-256 over the content of all."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{files[0].stem} {digest.hexdigest()[:_DIGITS]}"


def sha256_head(content: bytes) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of data that is no file, for its name."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
