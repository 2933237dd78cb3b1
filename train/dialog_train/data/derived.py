"""Folders of what is computed once from a dialogues dataset and a model: image vectors, token ids.

One file a dialogues shard. A file is written whole or not at all, says which bytes it was made from, and is made anew
where those changed. One process writes at a time. What another model made is refused.
"""

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.files import fsync
from dialog_gen.dataset.folder import DatasetFolder, sha256_json
from dialog_gen.dataset.record import kept_pairs
from dialog_gen.dataset.versions import RowFile
from dialog_gen.dataset.writer import DatasetWriter, open_writer
from dialog_gen.gates.summary import without_gates

CONFIG_FILE = "config.json"

# Names, places and the spelling of a transform do not change a vector.
_FOR_PEOPLE = ("model", "dialogues", "transform")


@dataclass(frozen=True, slots=True)
class Source:
    """The accepted rows of one dialogues shard."""

    shard: str
    path: str
    """Relative to the dataset folder."""
    rows: int
    sha256: str
    """Of the file's bytes, as its manifest states it."""


def sources_of(dataset: DatasetFolder) -> Iterator[Source]:
    """The finished shards that hold dialogues, in order. Raises UsageError for a damaged manifest, or if none does."""
    found = False
    for name in dataset.shards():
        manifest = dataset.manifest(name)
        if manifest is None:
            raise UsageError(f"{dataset.location}: shards/{name}.json is damaged: run `dialog-gen run` again.")
        for entry in manifest.files:
            if entry.path.startswith("data/") and entry.rows:
                found = True
                yield Source(name, entry.path, entry.rows, entry.sha256)
    if not found:
        raise UsageError(f"{dataset.location} holds no dialogues: `dialog-gen status` tells what it holds.")


@contextmanager
def reading(dataset: DatasetFolder, source: Source, columns: list[str], advice: str) -> Generator[RowFile]:
    """A shard's file. Raises UsageError where it is gone, damaged, or lacks one of the columns."""
    with dataset.row_file(source.path) as file:
        if missing := [name for name in columns if name not in file.names]:
            raise UsageError(f"{dataset.location}/{source.path} has no column {', '.join(missing)}: {advice}.")
        yield file


def read_rows(
    dataset: DatasetFolder, source: Source, columns: Sequence[str], *, kept_only: bool = False, at_once: int = 2048
) -> Iterator[list[dict[str, Any]]]:
    """The rows of a shard, `at_once` of them; with `kept_only`, `texts` without the pairs that a quality gate marked.

    Raises UsageError as `reading` does, and where `kept_only` asks for gates that did not go over the shard.
    """
    wanted = [*columns, "gates"] if kept_only else [*columns]
    with reading(dataset, source, wanted, "a dataset that `dialog-gen run` wrote has it") as file:
        for batch in file.batches(at_once, wanted):
            rows: list[dict[str, Any]] = batch.to_pylist()
            if kept_only:
                if any(row["gates"] is None for row in rows):
                    raise without_gates(dataset.location, source.shard, "data.kept_only")
                rows = [{**row, "texts": kept_pairs(row)} for row in rows]
            yield rows


def identity_of(clip: Clip) -> dict[str, Any]:
    """What decides the vectors and token ids of a model, as JSON values."""
    return {
        "model": clip.name,
        "weights_sha256": clip.weights_sha256,
        # An activation is not among the weights.
        "model_config": json.loads(json.dumps(clip.config)),
        "preprocess_config": json.loads(json.dumps(clip.preprocess_config)),
        "transform": re.sub(r" at 0x[0-9a-f]+", "", repr(clip.preprocess)),
    }


def identity_of_dataset(dataset: DatasetFolder) -> dict[str, Any]:
    """What tells datasets apart, however many shards are finished, and in whatever version of the record they are."""
    config = dataset.config()
    if "schema_version" in config:
        # An upgrade changes no image and no text. 2 was current when folders were first made from datasets.
        config["schema_version"] = 2
    return {"dialogues": dataset.location, "dialogues_config_sha256": sha256_json(config)}


def read_json(file: Path, what: str) -> dict[str, Any]:
    """A small file of a folder. Raises UsageError where it is missing or damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{file.parent} holds no finished {what} (it has no {file.name}).") from None
    except ValueError:
        raise UsageError(f"{file} is damaged: remove {file.parent} and make it again.") from None


def refuse_other(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UsageError if what is in `folder` was made with something else than is `wanted`."""
    keys = [key for key in wanted if key not in _FOR_PEOPLE and found.get(key) != wanted[key]]
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
    """Holds `out` for writing; `part` is the subfolder of its files.

    Raises UsageError where another process writes there, or something else made what is there; DialogGenError where the
    disk refuses.
    """
    if (out / CONFIG_FILE).exists():
        found = read_json(out / CONFIG_FILE, part)
        if found.get("kind") != config["kind"]:
            raise UsageError(f"{out} holds something else than {config['kind']}: choose another folder.")
        if any((out / part).glob("*")):
            refuse_other(out, found, config)
            config = found
    try:
        with open_writer(str(out), config) as store:
            yield store
    except OSError as error:
        what = error.strerror or error
        raise DialogGenError(f"cannot write {out}: {what}. Run again to go on; finished shards are kept.") from error


def put(store: DatasetWriter, name: str, file: Path) -> None:
    """Moves a finished file of the store's temporary folder to its place: whole or not at all."""
    fsync(file)
    store.put(name, file)


def remove_others(store: DatasetWriter, part: str, keep: set[str]) -> None:
    """Removes files of shards that the dataset does not have any more."""
    for name in store.list(part):
        if name not in keep:
            store.remove(f"{part}/{name}")


def _model(config: Mapping[str, Any]) -> str:
    return f"{config.get('model')} (weights {str(config.get('weights_sha256'))[:12]})"
