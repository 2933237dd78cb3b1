"""Upgrades a dataset to the current version of the record, in place: shard by shard, each shard exactly once.

`OUT/upgrade.json` exists during an upgrade. It contains the version and the configuration hash of the shards that are
not upgraded yet; until it is removed, all readers accept both versions. The manifest of a shard is replaced after its
rows, so an upgrade that was killed can be continued.
"""

from dataclasses import dataclass
from pathlib import Path

from dialog_gen.core.errors import FailedCheckError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import UPGRADE, DatasetFolder, ShardManifest, Upgrade, open_dataset, upgraded, version_of
from dialog_gen.dataset.locks import lock_exclusively
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.versions import schema_of
from dialog_gen.dataset.writer import DatasetWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeSummary:
    """What an upgrade did."""

    location: str
    from_version: int
    to_version: int
    shards: int
    """Shards that this call upgraded; 0 for a dataset of the current version."""

    def __str__(self) -> str:
        if self.from_version == self.to_version:
            return f"{self.location}: version {self.to_version} of the record, nothing to do"
        return (
            f"{self.location}: {count_of(self.shards, 'shard')} upgraded from version {self.from_version} to "
            f"{self.to_version}"
        )


def upgrade(dataset: str | Path, *, on_progress: OnProgress = ignore_progress) -> UpgradeSummary:
    """Upgrades a dataset folder, a local path or an fsspec URL, to the current version of the record if it is older.

    A shard whose bytes do not match its manifest is left unchanged; its rows must be made again. Raises
    FailedCheckError for such shards after all others are upgraded. Raises NoDatasetError if there is no dataset,
    UsageError if another process writes to it, and DialogGenError if the folder cannot be written.
    """
    folder = open_dataset(dataset)
    location = folder.location
    if folder.is_current():
        current = sha256_json(folder.config())
        manifests = {name: folder.manifest(name) for name in folder.shards()}
        _refuse_damaged(location, [name for name, m in manifests.items() if m is None or m.config_sha256 != current])
        return _summary(folder, SCHEMA_VERSION, 0)
    with lock_exclusively(folder) as tmp:
        # Another process may have upgraded the dataset before this one got the lock.
        config, noted = folder.config(), folder.upgrade()
        before = noted or Upgrade(schema_version=version_of(config), config_sha256=sha256_json(config))
        writer = DatasetWriter(location, upgraded(config), tmp)
        if before.schema_version != SCHEMA_VERSION:
            writer.put_json(UPGRADE, before.model_dump())
            writer.put_config(upgraded(config))
        writer.remove_leftovers()
        names, damaged, done = folder.shards(), list[str](), 0
        for number, name in enumerate(names):
            on_progress("upgrading shards", number, len(names))
            manifest = folder.manifest(name)
            if manifest is not None and manifest.config_sha256 == writer.config_sha256:
                continue
            if (
                manifest is None
                or manifest.config_sha256 != before.config_sha256
                or not _upgraded(writer, manifest, before)
            ):
                damaged.append(name)
            else:
                done += 1
        on_progress("upgrading shards", len(names), len(names))
        writer.remove(UPGRADE)
    _refuse_damaged(location, damaged)
    return _summary(folder, before.schema_version, done)


def _refuse_damaged(location: str, shards: list[str]) -> None:
    if shards:
        raise FailedCheckError(
            f"{count_of(len(shards), 'shard')} of {location} {'is' if len(shards) == 1 else 'are'} damaged and "
            f"not upgraded, first {shards[0]}; all "
            f"others are upgraded: `dialog-gen repair {location}` sets aside what is damaged and makes it anew."
        )


def _upgraded(writer: DatasetWriter, manifest: ShardManifest, before: Upgrade) -> bool:
    """Upgrades a shard. Returns False, and changes nothing, if the shard is damaged."""
    if any(writer.damage(entry) for entry in manifest.files):
        return False
    parts = [
        part
        for part in ("data", "rejects")
        if schema_of(f"{part}/", before.schema_version) != schema_of(f"{part}/", SCHEMA_VERSION)
    ]
    writer.rewrite(manifest, lambda table: table, parts=parts, config_sha256=writer.config_sha256)
    return True


def _summary(folder: DatasetFolder, version: int, shards: int) -> UpgradeSummary:
    return UpgradeSummary(location=folder.location, from_version=version, to_version=SCHEMA_VERSION, shards=shards)
