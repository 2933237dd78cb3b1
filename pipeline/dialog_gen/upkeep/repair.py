"""`dialog-gen repair`: reads a dataset, sets aside what is damaged, makes just that anew, and reads it again."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.mapping import Map
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.command import recorded_command
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.notes import GATES, RUN, Repair
from dialog_gen.dataset.repair import SetAside, end_repair, set_aside_damage
from dialog_gen.dataset.upgrade import upgrade
from dialog_gen.dataset.verify import Verdict
from dialog_gen.dataset.writer import open_writer
from dialog_gen.executors.base import Where
from dialog_gen.inspect.deep import image_check, verify_by
from dialog_gen.upkeep.again import make_missing

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSummary:
    """What a repair found and did."""

    location: str
    set_aside: list[str]
    """Paths of what was moved out of the dataset."""
    set_aside_in: str | None
    """The folder where it is now; None if nothing was moved."""
    made: list[str]
    """Names of the shards that were made anew."""
    images: int
    accepted: int
    rejected: int
    unreadable: int
    problems: list[str]
    """What is still wrong; empty if all is as promised."""
    unfinished: bool
    """Whether the run that makes the dataset never finished: a repair does not continue it."""
    problem: str | None = None
    """The error message if something is still wrong; else None."""

    def __str__(self) -> str:
        lines = [f"set aside {path}" for path in self.set_aside[:_SHOWN]]
        if len(self.set_aside) > _SHOWN:
            lines.append(f"set aside {len(self.set_aside) - _SHOWN} more")
        if self.set_aside:
            lines.append(f"what was set aside is in {self.set_aside_in}")
        lines += [f"made {name} anew" for name in self.made[:_SHOWN]]
        if len(self.made) > _SHOWN:
            lines.append(f"made {len(self.made) - _SHOWN} more shards anew")
        lines += self.problems
        if self.unfinished:
            lines.append("the run never finished: its own command continues it")
        found = f"{self.location}: {count_of(self.images, 'image')}: "
        nothing = "" if self.set_aside or self.made else ", nothing to repair"
        return "\n".join([*lines, found + ("still not as promised" if self.problem else f"all as promised{nothing}")])


def repair(
    dataset: str | Path,
    *,
    deep: bool = False,
    executor: str = "local",
    ray_address: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> RepairSummary:
    """Reads a whole dataset, sets aside what is damaged or belongs to nothing, and makes just that anew.

    Nothing is deleted: what is set aside is moved to OUT/set-aside/TIME/. Shards are made anew by the command that made
    the dataset, with the same settings; other shards keep their images and texts. If gates had been applied, they are
    applied to the new shards. An intact dataset is not changed. Another repair continues one that was killed.

    With `deep`, every image is decoded, as `verify` does, and a shard with a wrong one is damaged. `executor` decides
    where shards are read and made.

    The `problem` of the summary is set if something is wrong afterwards. Raises NoDatasetError if there is no dataset,
    UsageError if its configuration is lost or if another process writes to it, and DialogGenError if the folder cannot
    be written.
    """
    location, where = str(dataset), Where(executor, ray_address)
    map_shards = where.map()
    with image_check(deep) as check_images:
        aside = set_aside_damage(location, check_images=check_images, map_shards=map_shards, on_progress=on_progress)
    if aside.todo is None:
        return _summary(location, aside, [], aside.verdict)
    before, error = set(DatasetFolder(location).shards()), None
    try:
        _make(location, aside.todo, before, where, on_progress)
    except DialogGenError as raised:
        error = str(raised)
    folder = open_dataset(location)
    made = sorted(set(folder.shards()) - before)
    if error is None and not set(aside.todo.shards) - before - set(made):
        end_repair(location)
    verdict = verify_by(map_shards, folder, deep=deep, on_progress=on_progress)
    return _summary(location, aside, made, verdict, error)


def _make(location: str, todo: Repair, before: Set[str], where: Where, on_progress: OnProgress) -> None:
    if not open_dataset(location).is_current():
        upgrade(location, on_progress=on_progress)
    make_missing(location, todo, where, on_progress)
    folder = open_dataset(location)
    if todo.gates is None:
        return
    hashes = {manifest.gates_sha256 for manifest in folder.manifests()}
    changed = bool(todo.shards or todo.suspects or set(folder.shards()) - before)
    if changed or None in hashes or len(hashes) > 1 or not folder.exists(GATES):
        _apply_gates(folder, todo.gates, where.map(), on_progress)


def _apply_gates(folder: DatasetFolder, settings: dict[str, Any], map_shards: Map, on_progress: OnProgress) -> None:
    from dialog_gen.gates.apply import GatePass

    command = recorded_command(folder)
    # A local model is given by its path: a gate could not find it by its name.
    model = {"model": command.arguments["model"]} if command is not None and command.command == "run" else {}
    gate_pass = GatePass.of(settings, {**folder.config(), **model})
    with open_writer(folder.location, folder.config()) as writer:
        gate_pass.apply(writer, on_progress, map_shards=map_shards)


def _summary(
    location: str, aside: SetAside, made: list[str], verdict: Verdict, error: str | None = None
) -> RepairSummary:
    problems = [*verdict.problems, *([error] if error else [])]
    folder = DatasetFolder(location)
    command, problem = recorded_command(folder), None
    if problems:
        problem = f"{location} is not as promised: {error or problems[0]}"
    return RepairSummary(
        location=location,
        set_aside=aside.paths,
        set_aside_in=f"{location.rstrip('/')}/{aside.folder}" if aside.paths else None,
        made=made,
        images=verdict.images,
        accepted=verdict.accepted,
        rejected=verdict.rejected,
        unreadable=verdict.unreadable,
        problems=problems,
        unfinished=(command is None or command.command == "run") and not folder.exists(RUN),
        problem=problem,
    )
