"""Training from Python: what the command line does, without its printing."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialog_gen.core.errors import MissingExtraError, UsageError, did_you_mean
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.toml_files import find_toml, read_toml_model
from dialog_train.config import Recipe, shipped_recipes
from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem

if TYPE_CHECKING:
    from dialog_train.loop import Resume


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """How a training ended."""

    model: Path
    """The folder of the trained model, OUT/model; OUT/train.json beside it says how the training went."""
    steps: int
    losses: dict[str, float]
    """Means over the last point of the log; `loss` is the sum of the others."""


def load_recipe(name_or_file: str | Path, overrides: Iterable[str] = (), *, system: str) -> Recipe:
    """The recipe of a training system: a shipped one by its name, or a TOML file.

    `overrides` change it; they are of the form "optim.lr=1e-4".

    Raises UsageError for an unknown name, a file that cannot be read, an unknown key or a value that does not fit.
    """
    path = find_toml(str(name_or_file), shipped_recipes(), "recipe")
    return read_toml_model(path, SYSTEMS.get(system).recipe, "recipe", overrides)


def train(
    recipe: Recipe | str | Path,
    *,
    system: str | None = None,
    overrides: Iterable[str] = (),
    resume: "Resume" = "never",
    switches: Collection[str] = (),
    on_progress: OnProgress = ignore_progress,
) -> TrainResult:
    """Trains what a recipe says and writes the model to its folder, on the GPU where there is one.

    A recipe file does not say its system: `system` names it where `recipe` is a shipped recipe's name or a file, which
    `overrides` change (see `load_recipe`). The system of a `Recipe` follows from its class. With `resume = "auto"` the
    training goes on from its newest checkpoint. `switches` are those of the system's own, such as "export-hf".

    In several processes, each calls it with the same arguments; see `accelerate launch`.

    Raises UsageError for what is not known or does not fit, and for a folder that holds a training where `resume` is
    "never"; MissingExtraError for a package that is not installed; FailedCheckError where a loss is not finite;
    DialogGenError where the disk refuses.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise UsageError("overrides change a recipe that is read from a file: build the Recipe as it is to be.")
        chosen = SYSTEMS.get(system) if system else _system_of(recipe)
        if type(recipe) is not chosen.recipe:
            raise UsageError(f"system {system!r} takes a {chosen.recipe.__name__}, got a {type(recipe).__name__}.")
    elif system is None:
        raise UsageError(f"which system is to train by {recipe}? Give one: {', '.join(SYSTEMS.names())}.")
    else:
        chosen, recipe = SYSTEMS.get(system), load_recipe(recipe, overrides, system=system)
    for switch in switches:
        if switch not in chosen.switches:
            raise UsageError(f"unknown switch {switch!r}; {did_you_mean(switch, chosen.switches)}.")

    if find_spec("accelerate") is None:
        raise MissingExtraError("training", "train")
    from dialog_train.loop import MODEL_FOLDER, start

    with start(recipe) as accelerator:
        heard = on_progress if accelerator.is_main_process else ignore_progress
        run = Run(accelerator=accelerator, resume=resume, on_progress=heard, switches=frozenset(switches))
        result = chosen.train(recipe, run)
    return TrainResult(model=recipe.out / MODEL_FOLDER, steps=result.steps, losses=result.losses)


def _system_of(recipe: Recipe) -> TrainingSystem[Any]:
    for name in SYSTEMS.names():
        if type(recipe) is (found := SYSTEMS.get(name)).recipe:
            return found
    raise UsageError(f"no training system takes a {type(recipe).__name__}; known: {', '.join(SYSTEMS.names())}.")
