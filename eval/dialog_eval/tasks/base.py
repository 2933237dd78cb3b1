"""The base classes of evaluation tasks, and their registry.

A module of this folder, or of another package through the entry-point group `dialog_eval.tasks`, defines a task:

    @TASKS.register("retrieval")
    class Retrieval(TaskDefinition[RetrievalOptions]): ...

The command `dialog-eval retrieval` and `dialog_eval.evaluate("retrieval", ...)` are derived from it. `dialog-eval
--help` imports all these modules, so they import torch and other slow packages only inside functions.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from dialog_eval.options import Common, parameters_of
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import open_regular
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
    """A task whose files are read: it knows its images and can evaluate models."""

    @property
    def image_ids(self) -> Collection[str]:
        """Ids, in the `ImageIndex`, of the images that the task needs."""
        ...

    def evaluate(
        self, models: "Models", images: "ImageVectors", on_progress: OnProgress
    ) -> "tuple[list[Entry], list[Reference]]":
        """Returns the entries of all variants, in the order of `models.variants`, and references to show with them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """How the results of a task are shown in tables and plots."""

    task: str
    """`Entry.task` of the results."""
    title: str
    """First part of a section's heading, such as "Visual question answering"."""
    short_title: str = ""
    """Put before a measure's name on the axis of a plot, such as "VQA"."""
    headlines: Mapping[str, str] = field(default_factory=dict[str, str])
    """The most important measures, for the overview and for plots -> name of their column in the overview, in which
    {protocol} is filled in. If a section has none of them, its first measure is plotted."""
    about: str = ""
    """What the most important measures mean, for those who do not know them: a sentence."""
    percent: bool = True
    """Whether the measures are shares, which are shown in percent; otherwise they are shown as they are."""

    def number(self, value: float, sign: str = "") -> str:
        """A value as "80.3" percent, or with three digits as "0.803" or "0.000312"; with sign "+" as "+4.4".

        Never "-0.0".
        """
        return f"{self.rounded(value):{sign}.{1 if self.percent else _decimals(value)}f}"

    def rounded(self, value: float) -> float:
        """A value as it is shown."""
        return (round(100 * value, 1) if self.percent else round(value, _decimals(value))) + 0.0


def _decimals(value: float) -> int:
    """Decimals that show three digits of a small value, at least three and at most eight."""
    return 3 if not value else min(8, max(3, 2 - math.floor(math.log10(abs(value)))))


class TaskDefinition(ABC, Generic[Options]):
    """Defines a task of `dialog-eval`. An instance belongs to one evaluation and has its options."""

    description: ClassVar[str]
    """The help text of the command."""
    example: ClassVar[str] = ""
    """A command line, shown at the end of the help."""
    options_type: ClassVar[type[Any]]
    """A frozen, keyword-only dataclass. Each field is an option of the command: `Annotated[type,
    typer.Option(help=...)]`. Options of all evaluations (`dialog_eval.options.Common`) cannot be redefined."""
    presentations: ClassVar[Sequence[Presentation]]
    """How the results of the task are shown; one for each `Entry.task`."""
    in_sweep: ClassVar[bool] = False
    """Whether `dialog-eval sweep` includes the task. It is measured if its required options are given; such a task
    needs at least one required option."""

    def __init__(self, options: Options) -> None:
        """Raises UsageError for invalid options; reads no files."""
        self.options = options

    @abstractmethod
    def load(self, index: "ImageIndex") -> "list[EvaluationTask]":
        """Reads the files. Raises UsageError for unsuitable files, and for images that the index lacks."""

    def open_model(self, name: str, pretrained: str | None) -> "Clip | None":
        """Opens a model that is not a CLIP, for tasks that measure others; None: the usual loader opens it.

        Raises UsageError for a model that the task cannot measure.
        """
        return None


_RESERVED = parameters_of(Common).keys() | {"task", "out", "json_output", "blends", "on_progress"}

TASKS = Registry[type[TaskDefinition[Any]]]("evaluation task", "dialog_eval.tasks", base=TaskDefinition, classes=True)


def get_task(name: str) -> type[TaskDefinition[Any]]:
    """The task with that name. Raises UsageError for an unknown task, and for an invalid one of another package."""
    found = TASKS.get(name)
    if taken := _RESERVED & parameters_of(found.options_type).keys():
        raise UsageError(f"evaluation task {name!r}: its option {min(taken)!r} is one of all evaluations; rename it.")
    return found


def presentation_of(task: str) -> Presentation:
    """How the results of a task are shown. A task that is not installed here is shown under its name."""
    for name in TASKS.names():
        try:
            definition = get_task(name)
        except UsageError:
            continue
        for presentation in definition.presentations:
            if presentation.task == task:
                return presentation
    return Presentation(task=task, title=task)


def dataset_name(*files: Path) -> str:
    """A dataset name: the stem of the first file and 12 hexadecimal digits of the SHA-256 of all files' content."""
    return f"{files[0].stem} {digits_of(*files)}"


def digits_of(*files: Path) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of all files' content, for a dataset name."""
    digest = hashlib.sha256()
    for path in files:
        with open_regular(path) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:_DIGITS]


def sha256_head(content: bytes) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of data, for a dataset name."""
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
