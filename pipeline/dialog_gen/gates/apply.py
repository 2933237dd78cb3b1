"""The pass that applies gates to a dataset: it writes the column `gates` of every shard exactly once.

Gates that judge by the whole dataset survey it first. Then each shard is rewritten as a whole, and its manifest stores
a hash of everything that the scores depend on. So a pass that was killed resumes where it stopped, and only shards
whose scores may change are rewritten.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.core.progress import OnProgress, counter, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, open_dataset
from dialog_gen.dataset.record import DIALOGUES
from dialog_gen.dataset.upgrade import upgrade
from dialog_gen.dataset.writer import DatasetWriter, open_writer
from dialog_gen.gates.base import Gate, Row, Scores, SetGate, gates_in_order
from dialog_gen.gates.settings import GateSettings, columns_read, load_gates, versions
from dialog_gen.gates.summary import gate_summary

_log = logging.getLogger(__name__)


def gate(
    dataset: str | Path, gates: str | Mapping[str, Any] = "text", *, on_progress: OnProgress = ignore_progress
) -> dict[str, Any]:
    """Scores every pair of a dataset and marks doubtful pairs. Deletes nothing; replaces earlier scores and marks.

    `dataset` is a dataset folder, local or an fsspec URL; `gates` chooses the gates, as in `load_gates`. Returns the
    content of gates.json. A dataset with an older version of the record is upgraded first.

    Raises UsageError for wrong settings and for a folder that is not a dataset or cannot be read, MissingExtraError if
    a gate needs an extra that is not installed, DialogGenError if writing fails or a model cannot be used, and the
    errors of `upgrade`.
    """
    folder = open_dataset(dataset)
    gate_pass = GatePass.of(gates, folder.config())
    if not folder.is_current():
        _log.warning("%s", upgrade(folder.location, on_progress=on_progress))
    with open_writer(folder.location, folder.config()) as writer:
        return gate_pass.apply(writer, on_progress)


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

    def apply(self, writer: DatasetWriter, on_progress: OnProgress = ignore_progress) -> dict[str, Any]:
        """Replaces the column `gates` of all shards and the file gates.json; returns the content of gates.json.

        Earlier scores of gates that are not in this pass are removed. Raises UsageError for files that cannot be read,
        DialogGenError if writing fails, and the errors of the gates; shards that are finished by then stay finished.
        """
        total = sum(manifest.accepted for manifest in writer.manifests())
        advance = counter(on_progress, "quality gates", total, "images")

        def gated(table: pa.Table) -> pa.Table:
            advance(table.num_rows)
            return self._gated(table)

        with ExitStack() as stack:
            for gate in self.gates.values():
                stack.callback(gate.close)
            gates_sha256 = self._survey(writer, total, on_progress)
            for manifest in writer.manifests():
                if manifest.gates_sha256 == gates_sha256:
                    writer.remove_replaced(manifest)
                    advance(manifest.accepted)
                else:
                    writer.rewrite(manifest, gated, gates_sha256=gates_sha256)
        summary = gate_summary(writer, self.settings)
        writer.put_json("gates.json", summary)
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
                on_progress("quality gates: survey", done, total, "images")
        return sha256_json(
            {
                "settings": {name: limits.model_dump(exclude_none=True) for name, limits in self.settings.items()},
                "versions": versions(self.settings),
                "of_the_set": {name: gate.settle() for name, gate in surveyors.items()},
            }
        )

    def _gated(self, table: pa.Table) -> pa.Table:
        """The table with new scores and marks in the column `gates`."""
        rows: list[Row] = table.select(columns_read(self.gates)).to_pylist()
        scores = {name: gate.score(rows) for name, gate in self.gates.items()}
        for name, of_rows in scores.items():
            if [len(of_row) for of_row in of_rows] != [len(row["texts"]) for row in rows]:
                raise DialogGenError(f"gate {name!r} did not give one score for each pair: mend its package.")
        gates = [self._of_row(row, {name: of[i] for name, of in scores.items()}) for i, row in enumerate(rows)]
        field = DIALOGUES.field("gates")
        return table.set_column(table.schema.get_field_index("gates"), field, pa.array(gates, field.type))

    def _of_row(self, row: Row, scores: Mapping[str, Scores]) -> list[list[dict[str, Any]]]:
        """For each pair, the score and mark of every gate; gates whose score is None are included."""
        return [
            [
                {"gate": name, "score": of_row[place], "marked": self.settings[name].is_violated(of_row[place])}
                for name, of_row in scores.items()
            ]
            for place in range(len(row["texts"]))
        ]
