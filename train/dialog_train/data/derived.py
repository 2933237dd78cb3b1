"""Folders of data that is computed once from a dialogues dataset and a model: image vectors, token ids.

There is one file per dialogues shard. Each file is written atomically and records a fingerprint of its input; it is
rebuilt when the input changes. Only one process writes at a time, and others wait for it. A folder that was made with
another model or dataset is refused.
"""

import json
import logging
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.files import FolderLockedError, fsync, read_regular, wait_while_locked
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.sealed_json import unsealed
from dialog_gen.dataset.folder import DatasetFolder, FileEntry
from dialog_gen.dataset.record import kept_pairs, stored_images
from dialog_gen.dataset.versions import RowFile
from dialog_gen.dataset.writer import DatasetWriter, open_writer
from dialog_gen.gates.summary import without_gates

CONFIG_FILE = "config.json"
NO_IMAGE, SEVERAL_IMAGES = "no_image", "several_images"
"""Why a row is left out that has no single image."""

# The name of the model, the location of the dataset and the repr of the transform do not change a vector.
_NOT_COMPARED = ("model", "dialogues", "transform")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """The accepted rows of one dialogues shard."""

    shard: str
    file: FileEntry

    @property
    def path(self) -> str:
        """Relative to the dataset folder."""
        return self.file.path

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.file.rows

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, as recorded in the shard's manifest."""
        return self.file.sha256


def sources_of(dataset: DatasetFolder) -> Iterator[Source]:
    """Yields the finished shards that contain dialogues, in order.

    Raises DamagedDatasetError for a damaged manifest, and UsageError if no shard contains dialogues.
    """
    found = False
    for manifest in dataset.manifests():
        for entry in manifest.files:
            if entry.path.startswith("data/") and entry.rows:
                found = True
                yield Source(manifest.shard, entry)
    if not found:
        raise UsageError(f"{dataset.location} holds no dialogues: `dialog-gen status` shows what it contains.")


@contextmanager
def open_shard(dataset: DatasetFolder, source: Source, columns: list[str], advice: str) -> Generator[RowFile]:
    """Opens the data file of a shard. Raises UsageError if it is missing or damaged, or lacks one of the columns."""
    with dataset.row_file(source.file) as file:
        if missing := [name for name in columns if name not in file.names]:
            raise UsageError(f"{dataset.location}/{source.path} has no column {', '.join(missing)}: {advice}.")
        yield file


def read_rows(
    dataset: DatasetFolder, source: Source, columns: Sequence[str], *, kept_only: bool = False, batch_size: int = 2048
) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of a shard in lists of up to `batch_size`.

    With `kept_only`, `texts` contains only the pairs that no quality gate marked. Raises UsageError as `open_shard`
    does, and if `kept_only` is set but the gates were not run on the shard.
    """
    wanted = [*columns, "gates"] if kept_only else [*columns]
    with open_shard(dataset, source, wanted, "a dataset that `dialog-gen run` wrote has it") as file:
        for batch in file.batches(batch_size, wanted):
            rows: list[dict[str, Any]] = batch.to_pylist()
            if kept_only:
                if any(row["gates"] is None for row in rows):
                    raise without_gates(dataset.location, source.shard, "data.kept_only")
                rows = [{**row, "texts": kept_pairs(row)} for row in rows]
            yield rows


def single_image(row: dict[str, Any]) -> bytes | str:
    """The bytes of the image of a row; or `NO_IMAGE`, or `SEVERAL_IMAGES` since one vector cannot stand for all."""
    stored = stored_images(row)
    return stored[0] if len(stored) == 1 else SEVERAL_IMAGES if stored else NO_IMAGE


def identity_of(clip: Clip) -> dict[str, Any]:
    """The properties of a model that determine its vectors and token ids, as JSON values."""
    return {
        "model": clip.name,
        "weights_sha256": clip.weights_sha256,
        # The weights do not include the activation function.
        "model_config": json.loads(json.dumps(clip.config)),
        "preprocess_config": json.loads(json.dumps(clip.preprocess_config)),
        "transform": re.sub(r" at 0x[0-9a-f]+", "", repr(clip.preprocess)),
    }


def identity_of_dataset(dataset: DatasetFolder) -> dict[str, Any]:
    """Identifies a dataset, independently of how many of its shards are finished and of its version of the record."""
    config = dataset.config()
    if "schema_version" in config:
        # An upgrade changes no image and no text. Version 2 was current when such folders were first made.
        config["schema_version"] = 2
    return {"dialogues": dataset.location, "dialogues_config_sha256": sha256_json(config)}


def read_json(file: Path, what: str) -> dict[str, Any]:
    """Reads a JSON file; `what` names the content in errors. Raises UsageError if the file is missing or damaged."""
    try:
        return unsealed(read_regular(file))
    except FileNotFoundError:
        raise UsageError(f"{file.parent} holds no finished {what} (it has no {file.name}).") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise UsageError(f"{file} is damaged: remove {file.parent} and make it again.") from None


def refuse_other(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UsageError if `folder` was made with another model, dataset or setting than `wanted`."""
    keys = [key for key in wanted if key not in _NOT_COMPARED and found.get(key) != wanted[key]]
    if not keys:
        return
    if set(keys) & {"weights_sha256", "model_config"}:
        how = f"another model: {_model(found)} there, {_model(wanted)} now"
        how += "" if "weights_sha256" in keys else "; the weights agree, the configuration does not"
    elif "dialogues_config_sha256" in keys:
        how = f"another dataset: {found.get('dialogues')} there, {wanted['dialogues']} now"
    else:
        how = "; ".join(f"{key}: {found.get(key)!r} there, {wanted[key]!r} now" for key in keys)
    raise UsageError(f"{folder} was made with {how}. Choose another folder, or remove this one.")


@contextmanager
def open_derived(out: Path, config: Mapping[str, Any], part: str) -> Generator[DatasetWriter]:
    """Opens `out` for writing and locks it; `part` is the subfolder of its data files.

    Waits while another process writes there: trainings that start together make what they share once. Raises UsageError
    if `out` was made from something else; DialogGenError if the disk refuses a write.
    """
    try:
        with ExitStack() as stack:
            store = None
            while store is None:
                try:
                    store = stack.enter_context(open_writer(str(out), _config_there(out, config, part)))
                except FolderLockedError:
                    _log.info("%s: waiting for another training, which prepares it", out)
                    wait_while_locked(out)
            yield store
    except OSError as error:
        what = error.strerror or error
        raise DialogGenError(f"cannot write {out}: {what}. Run again to continue; finished shards are kept.") from error


def _config_there(out: Path, config: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """The configuration that the files in `out` were made with, or `config`. Raises UsageError if they do not fit."""
    if (out / CONFIG_FILE).exists():
        found = read_json(out / CONFIG_FILE, part)
        if found.get("kind") != config["kind"]:
            raise UsageError(f"{out} holds something else than {config['kind']}: choose another folder.")
        if any((out / part).glob("*")):
            refuse_other(out, found, config)
            return found
    return config


def put(store: DatasetWriter, name: str, file: Path) -> None:
    """Moves a finished file from the store's temporary folder to its final name, atomically."""
    fsync(file)
    store.put(name, file)


def remove_others(store: DatasetWriter, part: str, keep: set[str]) -> None:
    """Removes files of shards that are no longer in the dataset."""
    for name in store.list(part):
        if name not in keep:
            store.remove(f"{part}/{name}")


def _model(config: Mapping[str, Any]) -> str:
    return f"{config.get('model')} (weights {str(config.get('weights_sha256'))[:12]})"
