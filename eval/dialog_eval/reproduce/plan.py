"""Plans: TOML files that say what is trained, how it is measured and which page comes of it.

A plan has steps, arms and measures. A step is a command. An arm is a training, repeated for several seeds. A measure
is a command for each seed of the arms that name it. In commands, `{out}` is the folder of everything, `{NAME}` the
output of the step NAME, and so of the training ARM-SEED; a measure also knows `{model}`, `{label}`, `{makes}` (what it
writes) and, by their names, the other measures of its arm. A step with `each_start` is a step NAME-START for each of
the plan's `starts`, over which the seeds are dealt; what belongs to one seed knows that of its start as `{NAME}`.

What several plans share is in `plans/parts`; a plan names the parts of each scale.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.toml_files import find_toml, fit_model, read_toml, shipped_toml

VALIDATION = "val"
"""What measures of a plan are `on` if they are on validation data."""
MOST_SEEDS = 100
"""A mistyped number is refused, and not planned for hours."""

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")]
"""It is part of file names and of placeholders."""
Kind = Literal["download", "generate", "train", "measure", "other"]


def _with_makes(command: str) -> str:
    if "{makes}" not in command:
        raise ValueError("a measure writes {makes}, which the command does not name")
    return command


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cost(_Strict):
    """What a command costs; unknown is 0."""

    minutes: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """On one core of a CPU, as measured."""
    gpu_hours: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """On an H100, estimated from the rates that the file gives."""
    images: int = Field(default=0, ge=0)
    """Number of images to download."""


class StepPlan(Cost):
    """A command that runs once, or once for each start."""

    run: str
    kind: Kind = "other"
    makes: str = ""
    """The file or folder that it writes; the default is {out}/NAME, for each start {out}/NAME-START."""
    each_start: bool = False
    """Whether each start has its own, such as the model that its trainings begin with."""


class ArmPlan(Cost):
    """A training, once for each seed; or, without a system, a model that is there."""

    label: str = Field(min_length=1)
    """Its rows in tables."""
    system: str = ""
    recipe: str = ""
    set: list[str] = []
    """Changes of the recipe."""
    model: str = ""
    """The checkpoint that is measured; the default is what the training wrote."""
    seeds: int | None = Field(default=None, ge=1, le=MOST_SEEDS)
    """None: as many as the user asks for."""
    measures: list[str] = []


class MeasurePlan(Cost):
    """A command for each seed of an arm; it writes {makes}."""

    run: Annotated[str, AfterValidator(_with_makes)]
    kind: Kind = "measure"
    suffix: Literal[".json", ""] = ".json"
    """".json" for results, "" for a checkpoint."""
    on: str = ""
    """What its results are on, such as another split, if that is not what the plan's other measures are on. With "val"
    they choose the best way of asking, as a choice of a blend does."""

    @property
    def chooses(self) -> bool:
        """Whether the best way of asking can be chosen by its results."""
        return self.on == VALIDATION or "--choose" in self.run


class ColumnPlan(_Strict):
    """A measure of a table, found in the results by its names."""

    name: str
    task: str = "retrieval"
    metric: str
    way: str = "similarity"
    """Of asking; in a study, "best" is the one that validation data choose."""
    on: str = ""
    """What is measured on, as a measure of the plan says."""


class RowPlan(_Strict):
    """A row of a published table, and the arm that repeats it."""

    label: str
    published: list[float]
    """In percent, in the order of the columns."""
    arm: str
    alias: str = "alone"
    """What of the arm's results it is: "baseline", "alone" or a blend such as "embedding blend 0.9"."""


class TablePage(_Strict):
    """A published table beside our figures."""

    kind: Literal["table"] = "table"
    columns: list[ColumnPlan]
    rows: list[RowPlan]
    """The first is the published baseline."""

    @model_validator(mode="after")
    def _figures_fit(self) -> "TablePage":
        for row in self.rows:
            if len(row.published) != len(self.columns):
                raise ValueError(f"row {row.label!r} has {len(row.published)} figures for {len(self.columns)} columns")
        return self

    def named_arms(self) -> dict[str, list[str]]:
        """What of the page names arms -> the names."""
        return {f"rows, {row.label!r},": [row.arm] for row in self.rows}


class MoreTable(_Strict):
    """A table of a study, with a row for each model that has any of its figures."""

    title: str
    note: str = ""
    arms: list[str] = []
    """Those in the table; the default is all."""
    columns: list[ColumnPlan]


class StudyPage(_Strict):
    """A study: a verdict, goals, claims, ablations and all figures."""

    kind: Literal["study"] = "study"
    scope: str = ""
    """What was measured, and what the figures say nothing about: the first line."""
    headline: list[str] = []
    """Arms of which the first lines tell; the default is `ablated`."""
    retrieval_on: str = ""
    """What the first lines' recalls are on, as a measure of the plan says, where it was measured."""
    ablations: list[str] = []
    """Arms, each with one part of `ablated` left out."""
    ablated: str = ""
    """The arm that ablations are compared with."""
    curves: dict[str, dict[str, float]] = {}
    """Title -> arm -> value on the x axis."""
    tables: list[MoreTable] = []
    """In addition to those that every study has."""
    claims: str = ""
    """The name of the file of claims, in the folder of claims."""
    with_plans: list[str] = []
    """Other plans: claims may name their arms, too, whose results are in the same folder once those plans were run."""

    def named_arms(self) -> dict[str, list[str]]:
        """What of the page names arms -> the names."""
        return {
            "headline": self.headline,
            "ablations": self.ablations,
            "ablated": [self.ablated] if self.ablated else [],
            **{f"curves.{title!r}": list(arms) for title, arms in self.curves.items()},
            **{f"tables, {table.title!r},": table.arms for table in self.tables},
        }


class PlainPage(_Strict):
    """The table of all results."""

    kind: Literal["plain"] = "plain"

    def named_arms(self) -> dict[str, list[str]]:
        """It names none."""
        return {}


class Plan(_Strict):
    """A plan; `load_plan` reads it for one scale."""

    name: str
    given: str
    """The name of a shipped plan, or of a file, without its folder."""
    title: str
    about: str = ""
    """Markdown, at the top of the page."""
    scales: dict[str, list[str]]
    """Scale, such as "shapes" -> the names of the parts that it takes."""
    seeds: int = Field(default=1, ge=1, le=MOST_SEEDS)
    """Seeds of each arm, if the user does not say."""
    starts: int | None = Field(default=None, ge=1, le=MOST_SEEDS)
    """Of steps with `each_start`: seed S has start S modulo this. Arms are then compared start by start, each by the
    mean over its seeds. The default is a start for each seed."""
    launcher: str = "dialog-train"
    """What starts a training: dialog-train, or `accelerate launch -m dialog_train`."""
    steps: dict[_Name, StepPlan] = {}
    arms: dict[_Name, ArmPlan] = {}
    measures: dict[_Name, MeasurePlan] = {}
    page: Annotated[TablePage | StudyPage | PlainPage, Field(discriminator="kind")] = PlainPage()

    @model_validator(mode="after")
    def _names_differ(self) -> "Plan":
        for name, step in self.steps.items():
            if step.each_start and name in self.arms:
                raise ValueError(f"{name!r} is a step of each start and an arm: {{{name}-0}} could be both")
        return self

    @model_validator(mode="after")
    def _labels_differ(self) -> "Plan":
        """Results of one label are taken for trainings of one arm."""
        first: dict[str, str] = {}
        for name, arm in self.arms.items():
            if (other := first.setdefault(arm.label, name)) != name:
                raise ValueError(f"the arms {other!r} and {name!r} have the same label, {arm.label!r}")
        return self

    @model_validator(mode="after")
    def _page_names_arms(self) -> "Plan":
        for place, names in self.page.named_arms().items():
            for name in names:
                if name not in self.arms:
                    raise ValueError(f"page.{place} names the arm {name!r}; {did_you_mean(name, self.arms)}")
        return self

    @model_validator(mode="after")
    def _best_way_is_measured(self) -> "Plan":
        """What the plan leaves unmeasured on validation data has no best way of asking, and its page would be wrong."""
        name = self.page.ablated if isinstance(self.page, StudyPage) else ""
        arm = self.arms.get(name)
        if arm and not any(one.chooses for measure in arm.measures if (one := self.measures.get(measure))):
            raise ValueError(
                f'page.ablated: {name!r} needs a measure on validation data (on = "val", or a choice of a blend), by '
                "which the best way of asking is chosen"
            )
        return self

    @property
    def has_starts(self) -> bool:
        """Whether trainings differ by more than their seeds: by what they begin with."""
        return any(step.each_start for step in self.steps.values())

    def start_of(self, seed: int) -> int:
        """The start that a seed has."""
        return seed if self.starts is None else seed % self.starts


FOLDER = Path(str(files("dialog_eval.reproduce"))) / "plans"


def shipped_plans() -> dict[str, Path]:
    """The plans that come with the package: name -> file."""
    return shipped_toml(FOLDER)


def _natural(name: str) -> list[str | int]:
    """A key that sorts table-5-2 before table-5-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def list_plans() -> list[tuple[str, str, str]]:
    """Name, scales and title of each shipped plan."""
    found: list[tuple[str, str, str]] = []
    for name, path in sorted(shipped_plans().items(), key=lambda plan: _natural(plan[0])):
        content = read_toml(path, "plan")
        if "scales" in content:
            found.append((name, ", ".join(content["scales"]), content["title"]))
    return found


def load_plan(name_or_file: str, scale: str) -> Plan:
    """Reads a plan with the parts of its scale. Raises UsageError for an unknown plan, part or scale."""
    path = find_toml(name_or_file, shipped_plans(), "plan")
    shipped = path in shipped_plans().values()
    content = {"name": path.stem, "given": path.stem if shipped else path.name, **read_toml(path, "plan")}
    scales: Any = content.get("scales", {})
    if not isinstance(scales, dict) or not scales:
        raise UsageError(f"plan file {path} has no table of scales, such as scales = {{ {scale} = [] }}.")
    if not all(isinstance(some, list) and all(isinstance(one, str) for one in some) for some in scales.values()):
        raise UsageError(f'plan file {path}: a scale is a list of parts, such as scales = {{ {scale} = ["shapes"] }}.')
    if scale not in scales:
        raise UsageError(f"--scale {scale}: the plan {path.stem} has {', '.join(map(str, scales))}.")
    parts = shipped_toml(FOLDER / "parts")
    merged: dict[str, Any] = {}
    for part in scales[scale]:
        _merge(merged, read_toml(find_toml(part, parts, "part of a plan"), "part of a plan"))
    _merge(merged, content)
    return fit_model(merged, Plan, f"plan file {path}")


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds the content of a file; tables are merged, anything else is replaced."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
