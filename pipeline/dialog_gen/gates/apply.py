"""The pass that puts gates over a dataset: `gate_*` and `marks` of every shard, exactly once.

Gates that look at the whole dataset survey it first. Then each shard is rewritten as a whole, and its manifest gets a
hash of all that the scores depend on: a run that was killed goes on where it stopped, and shards are done again only
where something would change.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetWriter, sha256_json
from dialog_gen.dataset.record import DIALOGUES, GATES
from dialog_gen.gates.report import gate_report
from dialog_gen.gates.scorer import Row, Scorer, Scores, SetScorer
from dialog_gen.gates.scorers import make_scorers
from dialog_gen.gates.settings import GateSettings, load_gates


def ungated_images(store: DatasetWriter) -> int:
    """Accepted images that the last pass of gates did not see; 0 where there was none."""
    if not store.exists("gates.json"):
        return 0
    return sum(manifest.accepted for manifest in store.manifests() if manifest.gates_sha256 is None)


@dataclass(frozen=True, slots=True)
class GatePass:
    """Gates, ready to go over a dataset once."""

    settings: GateSettings
    scorers: Mapping[str, Scorer]
    """One for each gate that is chosen."""

    @classmethod
    def of(cls, spec: str, dataset_config: Mapping[str, Any]) -> "GatePass":
        """By a user's word, see `load_gates`, for dialogues made with `dataset_config`.

        Raises UsageError for whatever is wrong with the settings, MissingExtraError where a gate needs an extra.
        """
        settings = load_gates(spec)
        return cls(settings, make_scorers(settings, dataset_config))

    def rows_to_go(self, store: DatasetWriter) -> int:
        """Rows that `apply` will tell of: each one twice if a gate surveys the dataset."""
        return sum(manifest.accepted for manifest in store.manifests()) * (2 if self._surveyors() else 1)

    def apply(self, store: DatasetWriter, on_rows: Callable[[int], None] = lambda rows: None) -> dict[str, Any]:
        """Replaces the gate columns and marks of all shards, and gates.json, whose content it returns.

        Columns of gates that are not chosen become null. `on_rows` is called with numbers of rows that were surveyed,
        scored, or found done. Raises UsageError for files that cannot be read, DialogGenError where writing fails, and
        what scorers raise; shards that are done by then are not done again.
        """

        def gated(table: pa.Table) -> pa.Table:
            on_rows(table.num_rows)
            return self._gated(table)

        with ExitStack() as stack:
            for scorer in self.scorers.values():
                stack.callback(scorer.close)
            gates_sha256 = self._survey(store, on_rows)
            for manifest in store.manifests():
                if manifest.gates_sha256 == gates_sha256:
                    store.remove_replaced(manifest)
                    on_rows(manifest.accepted)
                else:
                    store.rewrite(manifest, gated, gates_sha256=gates_sha256)
        report = gate_report(store, self.settings)
        store.put_json("gates.json", report)
        return report

    def _survey(self, store: DatasetWriter, on_rows: Callable[[int], None]) -> str:
        """The hash of all that the scores depend on beside the rows themselves."""
        surveyors = self._surveyors()
        if surveyors:
            for table in store.tables(_columns(surveyors)):
                rows = table.to_pylist()
                for scorer in surveyors.values():
                    scorer.survey(rows)
                on_rows(len(rows))
        return sha256_json(
            {
                "settings": self.settings.model_dump(exclude_none=True),
                "versions": self.settings.versions(),
                "of_the_set": {name: scorer.settle() for name, scorer in surveyors.items()},
            }
        )

    def _gated(self, table: pa.Table) -> pa.Table:
        """The rows with new scores and marks."""
        if missing := [name for name in DIALOGUES.names if name not in table.schema.names]:
            raise UsageError(
                f"the dataset was made by an older version, without the columns {', '.join(missing)}: make it anew."
            )
        rows: list[Row] = table.select(_columns(self.scorers)).to_pylist()
        scores = {name: scorer.score(rows) for name, scorer in self.scorers.items()}
        columns: dict[str, list[Any]] = {
            **{f"gate_{name}": scores.get(name, [None] * len(rows)) for name in GATES},
            "marks": [self._marks(row, {name: of[i] for name, of in scores.items()}) for i, row in enumerate(rows)],
        }
        for column, values in columns.items():
            field = DIALOGUES.field(column)
            table = table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))
        return table

    def _marks(self, row: Row, scores: Mapping[str, Scores]) -> list[list[str]]:
        limits = self.settings.chosen()
        return [
            [name for name in scores if limits[name].speak_against(scores[name][place])]
            for place in range(len(row["texts"]))
        ]

    def _surveyors(self) -> dict[str, SetScorer]:
        return {name: scorer for name, scorer in self.scorers.items() if isinstance(scorer, SetScorer)}


def _columns(scorers: Mapping[str, Scorer]) -> list[str]:
    """What any of the scorers reads, and `texts`."""
    return sorted({"texts"}.union(*(scorer.columns for scorer in scorers.values())))
