"""The registry of training systems, and what a system declares.

A file or folder of this package registers one system. It imports torch and other slow packages only inside functions:

    SYSTEMS.register("draft")(TrainingSystem(description=..., recipe=DraftRecipe, train=train))

`train` builds a model with its objective (`dialog_train.system.System`) and batches (`Data`) from a recipe and passes
both to `run.fit`. Other packages register systems through the entry points `dialog_train.systems`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dialog_gen.core.progress import OnProgress
from dialog_gen.core.registry import Registry
from dialog_train.config import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

    from dialog_train.loop import FitResult, Resume
    from dialog_train.system import Data, System

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The settings of a run that do not depend on the system."""

    accelerator: "Accelerator"
    resume: "Resume"
    on_progress: OnProgress
    """Only the first process reports progress; in the others this function does nothing."""
    switches: frozenset[str]
    """The system's own switches that were given."""

    def fit(self, recipe: Recipe, system: "System", data: "Data") -> "FitResult":
        """Trains with the loop that all systems share; raises what `dialog_train.loop.fit` raises."""
        from dialog_train.loop import fit

        return fit(recipe, system, data, accelerator=self.accelerator, resume=self.resume, on_progress=self.on_progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSystem(Generic[AnyRecipe]):
    """The registry's entry of a training system."""

    description: str
    """One line, for lists and help."""
    recipe: type[AnyRecipe]
    """The class of its recipes. Every system has its own class."""
    train: Callable[[AnyRecipe, Run], "FitResult"]
    """Trains a model and writes it to OUT/model."""
    switches: Mapping[str, str] = field(default_factory=dict[str, str])
    """The system's own command line switches: name -> help. "export-hf" becomes --export-hf."""


SYSTEMS: Registry[TrainingSystem[Any]] = Registry("training system", "dialog_train.systems", base=TrainingSystem)
