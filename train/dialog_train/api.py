"""Training from Python. The command line calls these functions and prints their results."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dialog_gen.core.errors import MissingExtraError, UsageError, did_you_mean
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.toml_files import apply_overrides, find_toml, fit_model, read_toml
from dialog_train.config import Recipe, shipped_recipes
from dialog_train.preflight import check_start
from dialog_train.systems.base import SYSTEMS, Run, TrainingSystem

if TYPE_CHECKING:
    from dialog_train.loop import Resume


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Result of a training."""

    model: Path
    """The folder of the trained model, OUT/model. OUT/train.json contains more about the training."""
    steps: int
    losses: dict[str, float]
    """Means over the steps of the last log point; `loss` is the sum of the others."""


def load_recipe(name_or_file: str | Path, overrides: Iterable[str] = (), *, system: str | None = None) -> Recipe:
    """Loads a shipped recipe by its name, or a TOML file.

    The file's key `system` names the training system; the parameter `system` is needed only for a file without that
    key. `overrides` change the recipe; they have the form "optim.lr=1e-4".

    Raises UsageError for an unknown name, a file that cannot be read or is for another system, an unknown key or an
    invalid value.
    """
    path = find_toml(str(name_or_file), shipped_recipes(), "recipe")
    content = read_toml(path, "recipe")
    own = content.pop("system", system)
    if own is None:
        raise UsageError(f"recipe file {path} does not say its system: add system = NAME, {_known_systems()}.")
    if system is not None and own != system:
        raise UsageError(f"recipe file {path} is for the system {own!r}, not for {system!r}: try dialog-train {own}.")
    overrides = list(overrides)
    apply_overrides(content, overrides)
    return fit_model(content, SYSTEMS.get(str(own)).recipe, f"recipe file {path}", overrides)


def train(
    recipe: Recipe | str | Path,
    *,
    system: str | None = None,
    overrides: Iterable[str] = (),
    resume: "Resume" = "never",
    switches: Collection[str] = (),
    on_progress: OnProgress = ignore_progress,
) -> TrainResult:
    """Trains a model by a recipe and writes it to the recipe's folder, on a GPU if there is one.

    `recipe` is the name of a shipped recipe or a file, which `overrides` and `system` change as in `load_recipe`; or it
    is a `Recipe`, whose class determines the system. With `resume = "auto"` the training continues from its newest
    checkpoint. `switches` are the system's own, such as "export-hf". To train in several processes, call it in each of
    them with the same arguments (`accelerate launch` does that).

    Raises UsageError for an unknown name, an invalid value, and a folder that contains a training if `resume` is
    "never"; MissingExtraError for a package that is not installed; FailedCheckError if a loss is not finite;
    DialogGenError if the disk refuses a write.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, system=system)
    elif overrides:
        raise UsageError("overrides change a recipe that is read from a file: build the Recipe as it is to be.")
    chosen = SYSTEMS.get(system) if system else _system_of(recipe)
    if type(recipe) is not chosen.recipe:
        raise UsageError(f"system {system!r} takes a {chosen.recipe.__name__}, got a {type(recipe).__name__}.")
    for switch in switches:
        if switch not in chosen.switches:
            raise UsageError(f"unknown switch {switch!r}; {did_you_mean(switch, chosen.switches)}.")

    check_start(recipe, resume)
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
    raise UsageError(f"no training system takes a {type(recipe).__name__}; {_known_systems()}.")


def _known_systems() -> str:
    return f"known: {', '.join(SYSTEMS.names())}"
