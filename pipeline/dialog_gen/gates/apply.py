"""The pass that applies gates to a dataset: scores and marks of every shard, exactly once.

Gates that judge by the whole dataset survey it first. Then each shard is rewritten as a whole, and its manifest gets a
hash of everything that the scores depend on: a pass that was killed resumes where it stopped, and only shards that
would change are rewritten.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dialog_gen.core.errors import UsageError
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.folder import DatasetFolder, Store, open_store, sha256_json
from dialog_gen.dataset.record import DIALOGUES, GATES
from dialog_gen.gates.base import Gate, Row, Scores, SetGate, gates_in_order
from dialog_gen.gates.settings import GateSettings, columns_read, load_gates, versions
from dialog_gen.gates.summary import gate_summary


def apply_gates(
    location: str, spec: str | Mapping[str, Any], on_progress: OnProgress = ignore_progress
) -> dict[str, Any]:
    """Scores every pair of a dataset and marks what is doubtful; deletes nothing, replaces what gates said before.

    `location` is a dataset folder, local or an fsspec URL; `spec` says which gates, as in `load_gates`. Returns the
    summary that gates.json holds. Raises UsageError for wrong settings, a folder that is no dataset or cannot be read,
    MissingExtraError where a gate needs an extra, DialogGenError where writing fails or a model cannot be used.
    """
    config = DatasetFolder.existing(location).config()
    gate_pass = GatePass.of(spec, config)
    with open_store(location, config) as store:
        return gate_pass.apply(store, on_progress)


def ungated_images(store: DatasetFolder) -> int:
    """Accepted images that the last pass of gates did not see; 0 where there was none."""
    if not store.exists("gates.json"):
        return 0
    return sum(sidecar.accepted for sidecar in store.sidecars() if sidecar.gates_sha256 is None)


@dataclass(frozen=True, slots=True)
class GatePass:
    """Gates with their settings, ready for one pass over a dataset."""

    settings: GateSettings
    gates: Mapping[str, Gate[Any]]
    """One for each of the settings."""

    @classmethod
    def of(cls, spec: str | Mapping[str, Any], dataset_config: Mapping[str, Any]) -> "GatePass":
        """The gates of `spec`, as in `load_gates`, for dialogues made with `dataset_config`; loads no model.

        Raises UsageError for wrong settings, MissingExtraError where a gate needs an extra.
        """
        settings = load_gates(spec)
        gates = gates_in_order(settings)
        return cls(settings, {name: gates[name](limits, dataset_config) for name, limits in settings.items()})

    def apply(self, store: Store, on_progress: OnProgress = ignore_progress) -> dict[str, Any]:
        """Replaces the scores and marks of all shards, and gates.json, whose content it returns.

        Scores of gates that are not in this pass are removed. Raises UsageError for files that cannot be read,
        DialogGenError where writing fails, and what gates raise; shards that are finished by then stay so.
        """
        total = sum(sidecar.accepted for sidecar in store.sidecars())
        done = 0

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            on_progress("quality gates", done, total, "images")

        def gated(table: pa.Table) -> pa.Table:
            advance(table.num_rows)
            return self._gated(table)

        with ExitStack() as stack:
            for gate in self.gates.values():
                stack.callback(gate.close)
            gates_sha256 = self._survey(store, total, on_progress)
            for sidecar in store.sidecars():
                if sidecar.gates_sha256 == gates_sha256:
                    store.remove_replaced(sidecar)
                    advance(sidecar.accepted)
                else:
                    store.rewrite(sidecar, gated, gates_sha256=gates_sha256)
        summary = gate_summary(store, self.settings)
        store.put_json("gates.json", summary)
        return summary

    def _survey(self, store: Store, total: int, on_progress: OnProgress) -> str:
        """The hash of everything that the scores depend on beside the rows themselves."""
        surveyors = {name: gate for name, gate in self.gates.items() if isinstance(gate, SetGate)}
        if surveyors:
            done = 0
            for table in store.tables(columns_read(surveyors)):
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
        """The rows with new scores and marks."""
        if missing := [name for name in DIALOGUES.names if name not in table.schema.names]:
            raise UsageError(
                f"the dataset was made by an older version, without the columns {', '.join(missing)}: make it anew."
            )
        rows: list[Row] = table.select(columns_read(self.gates)).to_pylist()
        scores = {name: gate.score(rows) for name, gate in self.gates.items()}
        columns: dict[str, list[Any]] = {
            **{f"gate_{name}": scores.get(name, [None] * len(rows)) for name in GATES},
            "marks": [self._marks(row, {name: of[i] for name, of in scores.items()}) for i, row in enumerate(rows)],
        }
        for column, values in columns.items():
            field = DIALOGUES.field(column)
            table = table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
        return table

    def _marks(self, row: Row, scores: Mapping[str, Scores]) -> list[list[str]]:
        return [
            [name for name in scores if self.settings[name].is_violated(scores[name][place])]
            for place in range(len(row["texts"]))
        ]
