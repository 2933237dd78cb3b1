"""Training systems by name, and what one has to say of itself.

A file or folder of this package registers one, and imports torch and the like inside its functions only:

    SYSTEMS.register("draft")(TrainingSystem(description=..., recipe=DraftRecipe, train=train))

where `train` makes a model with its objective (`dialog_train.system.System`) and batches (`Data`) of a recipe, and
gives both to `run.fit`. Other packages do the same through the entry points `dialog_train.systems`.
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
    """How a training is run, whatever is trained."""

    accelerator: "Accelerator"
    resume: "Resume"
    on_progress: OnProgress
    """Does nothing in all processes but the first."""
    switches: frozenset[str]
    """Those of the system's own that were given."""

    def fit(self, recipe: Recipe, system: "System", data: "Data") -> "FitResult":
        """Trains in the one loop of all systems: see `dialog_train.loop.fit`, which raises the same."""
        from dialog_train.loop import fit

        return fit(recipe, system, data, accelerator=self.accelerator, resume=self.resume, on_progress=self.on_progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSystem(Generic[AnyRecipe]):
    """What the registry knows of a training system."""

    description: str
    """One line, for lists and help."""
    recipe: type[AnyRecipe]
    """The model of its recipes; no two systems share one."""
    train: Callable[[AnyRecipe, Run], "FitResult"]
    """Trains and writes OUT/model."""
    switches: Mapping[str, str] = field(default_factory=dict[str, str])
    """Its own switches of the command line: name -> help. "export-hf" becomes --export-hf."""


SYSTEMS: Registry[TrainingSystem[Any]] = Registry("training system", "dialog_train.systems", base=TrainingSystem)
