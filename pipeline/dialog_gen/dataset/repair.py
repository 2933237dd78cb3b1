"""Takes what is damaged out of a dataset folder: moves it to OUT/set-aside/TIME/, where nothing reads it.

What still has to be made anew is noted in repair.json before the first file is moved. So a repair that was killed can
be continued, by another one or by the command that made the dataset.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.mapping import Map, map_here
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.command import recorded_command
from dialog_gen.dataset.errors import DamagedConfigError, NoDatasetError
from dialog_gen.dataset.folder import UPGRADE, DatasetFolder, Upgrade, other_name, upgraded
from dialog_gen.dataset.locks import lock_exclusively
from dialog_gen.dataset.notes import GATES, REPAIR, RUN, Repair, begun_repair, json_object
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.shard_check import CheckImages
from dialog_gen.dataset.verify import Verdict, verify
from dialog_gen.dataset.writer import DatasetWriter

SET_ASIDE = "set-aside"


@dataclass(slots=True, kw_only=True)
class SetAside:
    """What was taken out of a dataset."""

    folder: str
    """Where it is now, relative to the dataset folder."""
    paths: list[str] = field(default_factory=list[str])
    """Where it was."""
    todo: Repair | None = None
    """What must be made anew; None if nothing was damaged."""
    verdict: Verdict
    """What was found."""


def set_aside_damage(
    location: str,
    *,
    check_images: CheckImages | None = None,
    map_shards: Map = map_here,
    on_progress: OnProgress = ignore_progress,
) -> SetAside:
    """Reads a whole dataset, and moves what is damaged or belongs to nothing out of it. Restores a lost config.json.

    `check_images` checks more of the rows' images, and `map_shards` decides where shards are read, as in `verify`.

    Raises NoDatasetError if there is no dataset, DamagedConfigError if its configuration is lost, UsageError if another
    process writes to it, and DialogGenError if the folder cannot be written.
    """
    folder = DatasetFolder(location)
    if not folder.exists("config.json") and not folder.exists("shards"):
        raise NoDatasetError(location, exists=folder.exists(""))
    with lock_exclusively(folder) as tmp:
        return _Work(DatasetWriter(location, {}, tmp)).run(check_images, map_shards, on_progress)


def end_repair(location: str) -> None:
    """Removes repair.json: nothing is left to be done."""
    folder = DatasetFolder(location)
    with lock_exclusively(folder) as tmp:
        DatasetWriter(location, {}, tmp).remove(REPAIR)


class _Work:
    def __init__(self, writer: DatasetWriter) -> None:
        self._writer = writer
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        names = [now, *(f"{now}-{number}" for number in range(2, 100))]
        self._moved = list[str]()
        self._to = next(f"{SET_ASIDE}/{name}" for name in names if not writer.exists(f"{SET_ASIDE}/{name}"))
        if writer.is_file(SET_ASIDE):  # something else has this name
            writer.move(SET_ASIDE, f"{REPAIR}.{SET_ASIDE}")
            writer.move(f"{REPAIR}.{SET_ASIDE}", f"{self._to}/{SET_ASIDE}")
            self._moved.append(SET_ASIDE)

    def run(self, check_images: CheckImages | None, map_shards: Map, on_progress: OnProgress) -> SetAside:
        self._restore_config()
        self._restore_upgrade()
        # A plain reader, because a writer belongs to this process.
        folder = DatasetFolder.existing(self._writer.location)
        verdict = verify(folder, check_images=check_images, on_progress=on_progress, locked=True, map_shards=map_shards)
        before = begun_repair(self._writer)
        todo = None
        if verdict.problem_count or before or self._moved:
            todo = self._todo(verdict, before or Repair())
            self._writer.put_json(REPAIR, todo.model_dump())
            for path in verdict.damaged:
                self._move(path)
                # Rows go with their manifest, and rows that are not damaged go, too: the shard is made as a whole.
                for file in _files_of(path):
                    self._move(file)
        return SetAside(folder=self._to, paths=self._moved, todo=todo, verdict=verdict)

    def _todo(self, verdict: Verdict, before: Repair) -> Repair:
        versions = self._writer.versions()
        shards, suspects = set(before.shards), set(before.suspects)
        for path in verdict.damaged:
            if path.count("/") != 1:
                continue
            name = PurePosixPath(path).stem.removesuffix(".v2")
            manifest = self._writer.manifest(name) if path.startswith("shards/") else None
            known = manifest is not None and manifest.shard == name and manifest.config_sha256 in versions
            (shards if known else suspects).add(name)
        settings = (json_object(self._writer, GATES) or {}).get("settings")
        command = recorded_command(self._writer)
        gates = before.gates or (settings if isinstance(settings, dict) else None) or (command and command.gates)
        return Repair(
            shards=sorted(shards),
            suspects=sorted(suspects - shards),
            finished=before.finished or self._writer.exists(RUN),
            gates=gates,
        )

    def _move(self, path: str) -> None:
        if self._writer.exists(path):
            self._writer.move(path, f"{self._to}/{path}")
            self._moved.append(path)

    def _restore_config(self) -> None:
        """Replaces a config.json that is missing, damaged, or not that of any shard, by the one the shards have."""
        writer = self._writer
        manifests = (writer.manifest(name) for name in writer.shards())
        hashes = Counter(manifest.config_sha256 for manifest in manifests if manifest)
        config, candidates = None, list(self._configs())
        try:
            config = DatasetFolder.existing(writer.location).config()
            if not hashes or sha256_json(config) in hashes or writer.exists(UPGRADE):
                return
            problem = f"{writer.location}: no shard was made with the configuration in config.json"
        except DamagedConfigError as error:
            problem = str(error).removesuffix(".")
        found = [candidate for candidate in candidates if sha256_json(candidate) in hashes]
        if not found and config in candidates:
            return  # the shards are those of another dataset
        if not found and hashes:
            raise UsageError(
                f"{problem}, and neither run.json nor command.json has the right one: run the command that made the "
                "dataset again, which writes config.json if all shards have its configuration."
            )
        if not (found := found or candidates):
            raise UsageError(f"{problem}, and no shard is left: remove the folder and run the command again.")
        self._move("config.json")
        writer.put_config(found[0])

    def _configs(self) -> Iterator[dict[str, Any]]:
        command, run = recorded_command(self._writer), (json_object(self._writer, RUN) or {}).get("config")
        for config in (command.config if command else None, run):
            if config and isinstance(config, dict):
                yield config
                yield upgraded(config)

    def _restore_upgrade(self) -> None:
        """Replaces a damaged upgrade.json: the shards' hashes tell what it contained."""
        writer = self._writer
        try:
            writer.upgrade()
        except DamagedConfigError:
            self._move(UPGRADE)
            manifests = (writer.manifest(name) for name in writer.shards())
            hashes = {manifest.config_sha256 for manifest in manifests if manifest}
            for version in range(1, SCHEMA_VERSION):
                earlier = sha256_json({**writer.config(), "schema_version": version})
                if earlier in hashes:
                    writer.put_json(UPGRADE, Upgrade(schema_version=version, config_sha256=earlier).model_dump())


def _files_of(path: str) -> list[str]:
    """The files that a shard may have; none if the path is not that of a manifest."""
    if Path(path).parent.name != "shards" or not path.endswith(".json"):
        return []
    usual = [f"{part}/{PurePosixPath(path).stem}.parquet" for part in ("data", "rejects")]
    return [*usual, *map(other_name, usual)]
