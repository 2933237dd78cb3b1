"""The steps of a plan: commands in the order in which they run, with what they write and what they need."""

import itertools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from dialog_eval.reproduce.plan import MOST_SEEDS, ArmPlan, Cost, Kind, Plan
from dialog_gen.core.errors import UsageError, check_within, did_you_mean
from dialog_train.api import load_recipe
from dialog_train.systems.base import SYSTEMS


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command, and what it writes."""

    name: str
    kind: Kind
    words: tuple[str, ...]
    makes: Path
    needs: tuple[str, ...]
    """Names of the steps whose output the command names."""
    cost: Cost
    arm: str | None = None
    seed: int = 0
    start: int = 0
    measure: str | None = None
    on: str = ""
    """What its results are on, see `MeasurePlan`."""

    @property
    def command(self) -> str:
        """The command as a user would type it."""
        return shlex.join(self.words)

    @property
    def is_results(self) -> bool:
        """Whether it writes a results.json of an arm."""
        return self.measure is not None and self.makes.suffix == ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A step whose command still has placeholders."""

    kind: Kind
    template: tuple[str, ...]
    makes: str
    cost: Cost
    own: Mapping[str, str]
    """Placeholders of this step only -> name of a step, or a text in quotes."""
    arm: str | None = None
    seed: int = 0
    start: int = 0
    measure: str | None = None
    on: str = ""


def plan_steps(plan: Plan, out: Path, seeds: int | None = None) -> list[Step]:
    """The steps that a plan's page needs, each after those that it needs.

    Raises UsageError for a placeholder, arm or measure that the plan does not have, for steps that need each other, for
    a plan that measures nothing, and for more than MOST_SEEDS.
    """
    if seeds is not None:
        check_within("--seeds", seeds, 1, MOST_SEEDS)
    drafts = _drafts(plan, out, seeds or plan.seeds)
    made: dict[str, Step] = {}
    for name, draft in drafts.items():
        made[name] = _finished(name, draft, drafts, plan.name)
    try:
        TopologicalSorter({name: step.needs for name, step in made.items()}).prepare()
    except CycleError as error:
        raise UsageError(f"plan {plan.name}: steps need each other: {' -> '.join(error.args[1])}.") from None
    wanted = _wanted(plan, made)
    if not wanted:
        raise UsageError(f"plan {plan.name} measures nothing: it has no arm with measures, which need its steps.")
    ordered: dict[str, Step] = {}
    for name in wanted:
        _add(name, made, ordered)
    for step in ordered.values():
        if step.kind == "train" and step.arm is not None:
            _check_recipe(plan, step, plan.arms[step.arm])
    return list(ordered.values())


def _check_recipe(plan: Plan, step: Step, arm: ArmPlan) -> None:
    """Raises UsageError for a training that its command would refuse; before other steps have run for hours."""
    sets = [after for word, after in itertools.pairwise(step.words) if word == "--set"]
    try:
        SYSTEMS.get(arm.system)
        load_recipe(arm.recipe, sets, system=arm.system)
    except UsageError as error:
        raise UsageError(f"plan {plan.name}: the arm {step.arm}: {error}") from None


def _add(name: str, made: Mapping[str, Step], ordered: dict[str, Step]) -> None:
    """Adds a step after what it needs, so that a step runs when something needs it, and not before."""
    if name not in ordered:
        for need in made[name].needs:
            _add(need, made, ordered)
        ordered[name] = made[name]


def _drafts(plan: Plan, out: Path, seeds: int) -> dict[str, _Draft]:
    drafts: dict[str, _Draft] = {}
    every = range(max([seeds, *(arm.seeds or 0 for arm in plan.arms.values())]))
    for name, step in plan.steps.items():
        starts = dict.fromkeys(map(plan.start_of, every)) if step.each_start else (None,)
        for start in starts:
            run = name if start is None else f"{name}-{start}"
            if run in drafts:
                raise UsageError(f"plan {plan.name}: {run} is the name of two steps.")
            drafts[run] = _Draft(
                kind=step.kind,
                template=tuple(_words(step.run, plan, f"steps.{name}.run")),
                makes=_place(step.makes, plan, name, out, start) if step.makes else f"{out}/{run}",
                cost=Cost(minutes=step.minutes, gpu_hours=step.gpu_hours, images=step.images),
                own={"out": repr(str(out))} if start is None else _of_start(plan, start, out),
            )
    # Seed by seed, so that a study that is stopped has one seed of each arm before it has two of any. Arms with their
    # own number of seeds, such as ablations, come after those that are the study's main part.
    main, others = ([name for name, arm in plan.arms.items() if (arm.seeds is None) is own] for own in (True, False))
    repeated = [(arm, seed) for seed in range(seeds) for arm in main]
    repeated += [(arm, seed) for arm in others for seed in range(plan.arms[arm].seeds or 0)]
    for arm, seed in repeated:
        for name, draft in _of_arm(plan, arm, seed, out).items():
            if name in drafts:
                raise UsageError(f"plan {plan.name}: {name} is the name of two steps, one of them of the arm {arm}.")
            drafts[name] = draft
    return drafts


def _place(makes: str, plan: Plan, name: str, out: Path, start: int | None) -> str:
    known = {"out": out} if start is None else {"out": out, "start": start}
    try:
        return makes.format_map(known)
    except (ValueError, AttributeError, TypeError, LookupError):
        places = " and ".join(f"{{{key}}}" for key in known)
        raise UsageError(f"plan {plan.name}: steps.{name}.makes is {makes!r}: it knows {places} only.") from None


def _words(command: str, plan: Plan, place: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise UsageError(f"plan {plan.name}: {place}: {str(error).lower()} in {command!r}.") from None


def _of_start(plan: Plan, start: int, out: Path) -> dict[str, str]:
    """The placeholders of what belongs to one start."""
    shared = {name: f"{name}-{start}" for name, step in plan.steps.items() if step.each_start}
    return {"out": repr(str(out)), "start": repr(str(start)), **shared}


def _of_arm(plan: Plan, name: str, seed: int, out: Path) -> dict[str, _Draft]:
    """The training of an arm with one seed, and its measures."""
    arm, run, made = plan.arms[name], f"{name}-{seed}", dict[str, _Draft]()
    start = plan.start_of(seed)
    own = _of_start(plan, start, out) | {"seed": repr(str(seed)), "label": repr(arm.label)}
    if arm.system:
        settings = [word for one in [f"seed={seed}", "out={makes}", *arm.set] for word in ("--set", one)]
        launcher = _words(plan.launcher, plan, "launcher")
        words = [*launcher, arm.system, "--config", arm.recipe, "--resume", "auto", *settings]
        made[run] = _Draft(
            kind="train",
            template=tuple(words),
            makes=f"{out}/runs/{run}",
            cost=Cost(minutes=arm.minutes, gpu_hours=arm.gpu_hours),
            own=own,
            arm=name,
            seed=seed,
            start=start,
        )
    elif not arm.model:
        raise UsageError(f"plan {plan.name}: the arm {name} has neither a system nor a model.")
    for measure in arm.measures:
        if measure not in plan.measures:
            raise UsageError(
                f"plan {plan.name}: the arm {name} has an unknown measure {measure!r}; "
                f"{did_you_mean(measure, plan.measures)}."
            )
        told = plan.measures[measure]
        others = {other: f"{run}-{other}" for other in arm.measures}
        made[f"{run}-{measure}"] = _Draft(
            kind=told.kind,
            template=tuple(
                word.replace("{model}", arm.model or f"{{{run}}}/model")
                for word in _words(told.run, plan, f"measures.{measure}.run")
            ),
            makes=f"{out}/{'results' if told.suffix else 'runs'}/{run}-{measure}{told.suffix}",
            cost=Cost(minutes=told.minutes, gpu_hours=told.gpu_hours),
            own=own | others,
            arm=name,
            seed=seed,
            start=start,
            measure=measure,
            on=told.on,
        )
    return made


class _Names(Mapping[str, str]):
    """Fills in placeholders, and notes the steps that they name."""

    def __init__(self, name: str, drafts: Mapping[str, _Draft], plan: str) -> None:
        self._name, self._drafts, self._plan = name, drafts, plan
        self.needs: dict[str, None] = {}

    def __getitem__(self, key: str) -> str:
        draft = self._drafts[self._name]
        if key == "makes":
            return draft.makes
        target = draft.own.get(key, key)
        if target[0] in "'\"":
            return target[1:-1]
        if target not in self._drafts:
            raise UsageError(
                f"plan {self._plan}: the step {self._name} names {{{key}}}, which is no step; "
                f"{did_you_mean(target, self._drafts)}."
            )
        if target != self._name:
            self.needs[target] = None
        return self._drafts[target].makes

    def __iter__(self) -> Iterator[str]:
        return iter(self._drafts)

    def __len__(self) -> int:
        return len(self._drafts)


def _finished(name: str, draft: _Draft, drafts: Mapping[str, _Draft], plan: str) -> Step:
    names = _Names(name, drafts, plan)
    try:
        words = tuple(word.format_map(names) for word in draft.template)
    except (ValueError, AttributeError, TypeError, IndexError) as error:
        raise UsageError(f"plan {plan}: the command of {name} has a wrong placeholder: {error}.") from None
    return Step(
        name=name,
        kind=draft.kind,
        words=words,
        makes=Path(draft.makes),
        needs=tuple(names.needs),
        cost=draft.cost,
        arm=draft.arm,
        seed=draft.seed,
        start=draft.start,
        measure=draft.measure,
        on=draft.on,
    )


def _wanted(plan: Plan, made: Mapping[str, Step]) -> list[str]:
    """The steps that measure: of the rows of a table, or of all arms."""
    arms = list(plan.arms)
    if plan.page.kind == "table":
        arms = [row.arm for row in plan.page.rows]
    return [name for name, step in made.items() if step.measure is not None and step.arm in arms]
