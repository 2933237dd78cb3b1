"""The pass that applies gates to a dataset: it writes the column `gates` of every shard exactly once.

Gates that judge by the whole dataset survey it first. Then each shard is rewritten as a whole, and its manifest stores
a hash of everything that the scores depend on. So a pass that was killed resumes where it stopped, and only shards
whose scores may change are rewritten. The manifest also stores such a hash for each gate that runs a model: its scores
are kept where they cannot have changed.
"""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dialog_gen.core.mapping import Advance, Map, map_here
from dialog_gen.core.progress import OnProgress, counter, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, ShardManifest, open_dataset
from dialog_gen.dataset.record import DIALOGUES
from dialog_gen.dataset.rewriting import stage_changed
from dialog_gen.dataset.shard_writer import StagedShard, Staging
from dialog_gen.dataset.upgrade import upgrade
from dialog_gen.dataset.writer import DatasetWriter, open_writer
from dialog_gen.engines.start import EngineSpec
from dialog_gen.executors.base import Where
from dialog_gen.gates.base import EngineGate, Gate, Row, Scores, SetGate, gates_in_order
from dialog_gen.gates.in_run import Entries, RunGates, entries_of, pass_sha256, scores_sha256
from dialog_gen.gates.settings import GateSettings, columns_read, load_gates
from dialog_gen.gates.summary import gate_summary

_log = logging.getLogger(__name__)


def gate(
    dataset: str | Path,
    gates: str | Mapping[str, Any] = "text",
    *,
    executor: str = "local",
    ray_address: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Scores every pair of a dataset and marks doubtful pairs. Deletes nothing; replaces earlier scores and marks.

    `dataset` is a dataset folder, local or an fsspec URL; `gates` chooses the gates, as in `load_gates`; `executor`
    decides where shards are scored. Returns the content of gates.json. A dataset with an older version of the record is
    upgraded first.

    Raises UsageError for wrong settings and for a folder that is not a dataset or cannot be read, MissingExtraError if
    a gate needs an extra that is not installed, DialogGenError if writing fails or a model cannot be used, and the
    errors of `upgrade`.
    """
    folder, map_shards = open_dataset(dataset), Where(executor, ray_address).map()
    gate_pass = GatePass.of(gates, folder.config())
    if not folder.is_current():
        _log.warning("%s", upgrade(folder.location, on_progress=on_progress))
    with open_writer(folder.location, folder.config()) as writer:
        return gate_pass.apply(writer, on_progress, map_shards=map_shards)


def ungated_images(folder: DatasetFolder) -> int:
    """The number of accepted images that the last pass did not score; 0 if no gates were ever applied."""
    if not folder.exists("gates.json"):
        return 0
    return sum(manifest.accepted for manifest in folder.manifests() if manifest.gates_sha256 is None)


@dataclass(frozen=True, slots=True)
class GatePass:
    """Gates with their settings, ready for one pass over a dataset."""

    settings: GateSettings
    gates: Mapping[str, Gate[Any]]
    """Gate name -> gate, with the same keys as `settings`."""

    @classmethod
    def of(cls, spec: str | Mapping[str, Any], dataset_config: Mapping[str, Any]) -> "GatePass":
        """Makes the gates of `spec`, as in `load_gates`, for dialogues made with `dataset_config`. Loads no model.

        Raises UsageError for wrong settings, MissingExtraError if a gate needs an extra that is not installed.
        """
        settings = load_gates(spec)
        gates = gates_in_order(settings)
        return cls(settings, {name: gates[name](limits, dataset_config) for name, limits in settings.items()})

    def in_run(self, engine: EngineSpec) -> RunGates | None:
        """The gates that a run with this engine can apply while it makes the dialogues; None if there are none."""
        asking = {n: gate for n, gate in self.gates.items() if isinstance(gate, EngineGate) and gate.can_ask(engine)}
        return RunGates.of(asking, self.settings) if asking else None

    def apply(
        self, writer: DatasetWriter, on_progress: OnProgress = ignore_progress, *, map_shards: Map = map_here
    ) -> dict[str, Any]:
        """Replaces the column `gates` of all shards and the file gates.json; returns the content of gates.json.

        `map_shards` decides where shards are scored; surveys are made in this process. Earlier scores of gates that are
        not in this pass are removed. Raises UsageError for files that cannot be read, DialogGenError if writing fails,
        and the errors of the gates; shards that are finished by then stay finished.
        """
        total = sum(manifest.accepted for manifest in writer.manifests())
        advance = counter(on_progress, "quality gates", total, "images")

        with ExitStack() as stack:
            for gate in self.gates.values():
                stack.callback(gate.close)
            gates_sha256 = self._survey(writer, total, on_progress)
            writer.remove_leftovers()

            def unscored() -> Iterator[ShardManifest]:
                for manifest in writer.manifests():
                    if manifest.gates_sha256 != gates_sha256:
                        yield manifest
                        continue
                    advance(manifest.accepted)

            staging = writer.staging(apart=map_shards.elsewhere)
            score = _ScoreShard(self, writer.reader(), staging, gates_sha256, scores_sha256(self.gates))
            runs_model = any(gate.needs_model for gate in self.gates.values())
            for _, staged in map_shards(score, unscored(), advance, gpu=runs_model, shared=writer.shared()):
                writer.replace(staged)
        summary = gate_summary(writer, self.settings)
        writer.put_json("gates.json", summary)
        # Last: gates.json is promised from then on.
        writer.record_gates(summary["settings"])
        return summary

    def _survey(self, folder: DatasetFolder, total: int, on_progress: OnProgress) -> str:
        """Runs the surveys; returns a hash of everything that the scores depend on except the rows themselves."""
        surveyors = {name: gate for name, gate in self.gates.items() if isinstance(gate, SetGate)}
        if surveyors:
            done = 0
            for table in folder.tables(columns_read(surveyors)):
                rows = table.to_pylist()
                for gate in surveyors.values():
                    gate.survey(rows)
                done += len(rows)
                on_progress("quality gates: reading all pairs", done, total, "images")
        return pass_sha256(self.settings, {name: gate.settle() for name, gate in surveyors.items()})

    def gated(self, table: pa.Table, kept: Collection[str]) -> pa.Table:
        """The table with new scores and marks in the column `gates`; the gates `kept` keep their scores."""
        columns = columns_read(name for name in self.gates if name not in kept)
        rows: list[Row] = table.select(columns).to_pylist()
        earlier = table["gates"].to_pylist() if kept else []
        scores = {
            name: [_earlier(name, of_row) for of_row in earlier] if name in kept else gate.score(rows)
            for name, gate in self.gates.items()
        }
        gates = [
            entries_of(row, {name: of[i] for name, of in scores.items()}, self.settings) for i, row in enumerate(rows)
        ]
        field = DIALOGUES.field("gates")
        return table.set_column(table.schema.get_field_index("gates"), field, pa.array(gates, field.type))


@dataclass(frozen=True, slots=True)
class _ScoreShard:
    """Writes the scores of a shard."""

    gate_pass: GatePass
    folder: DatasetFolder
    staging: Staging
    gates_sha256: str
    scores_sha256: Mapping[str, str]

    def __call__(self, manifest: ShardManifest, advance: Advance) -> StagedShard:
        kept = {name for name, sha256 in self.scores_sha256.items() if manifest.scores_sha256.get(name) == sha256}

        def gated(table: pa.Table) -> pa.Table:
            advance(table.num_rows)
            return self.gate_pass.gated(table, kept)

        with self.staging.of_shard() as staging:
            return stage_changed(
                self.folder,
                staging,
                manifest,
                gated,
                gates_sha256=self.gates_sha256,
                scores_sha256=dict(self.scores_sha256),
            )

    def close(self) -> None:
        """Releases the models."""
        for gate in self.gate_pass.gates.values():
            gate.close()


def _earlier(name: str, entries: Entries) -> Scores:
    """The stored score of each pair."""
    return [next(entry["score"] for entry in of_pair if entry["gate"] == name) for of_pair in entries]
