"""The pass that applies gates to a dataset: the column `gates` of every shard, exactly once.

Gates that look at the whole dataset survey it first. Then each shard is rewritten as a whole, and its manifest gets a
hash of all that the scores depend on: a run that was killed goes on where it stopped, and shards are done again only
where something would change.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dialog_gen.dataset.folder import sha256_json
from dialog_gen.dataset.record import DIALOGUES
from dialog_gen.dataset.writer import DatasetWriter
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
        """Replaces the column `gates` of all shards, and gates.json, whose content it returns.

        Gates that are not chosen have no entry in it. `on_rows` is called with numbers of rows that were surveyed,
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
        rows: list[Row] = table.select(_columns(self.scorers)).to_pylist()
        scores = {name: scorer.score(rows) for name, scorer in self.scorers.items()}
        gates = [self._of_row(row, {name: of[i] for name, of in scores.items()}) for i, row in enumerate(rows)]
        field = DIALOGUES.field("gates")
        return table.set_column(table.schema.get_field_index("gates"), field, pa.array(gates, field.type))

    def _of_row(self, row: Row, scores: Mapping[str, Scores]) -> list[list[dict[str, Any]]]:
        """For each pair what each gate says; a gate that gives no score is there too."""
        limits = self.settings.chosen()
        return [
            [
                {"gate": name, "score": of_row[place], "marked": limits[name].speak_against(of_row[place])}
                for name, of_row in scores.items()
            ]
            for place in range(len(row["texts"]))
        ]

    def _surveyors(self) -> dict[str, SetScorer]:
        return {name: scorer for name, scorer in self.scorers.items() if isinstance(scorer, SetScorer)}


def _columns(scorers: Mapping[str, Scorer]) -> list[str]:
    """What any of the scorers reads, and `texts`."""
    return sorted({"texts"}.union(*(scorer.columns for scorer in scorers.values())))
