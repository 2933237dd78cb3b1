"""The versions of the record: the columns of each version, and a reader that converts older rows to the current one.

1  has no `source_sha256`, no `answer_logprobs` and no columns of quality gates
2  has a column `gate_NAME` for each of twelve gates (one score per pair; null if the gate was not applied), and the
   column `marks` (for each pair the names of the gates that mark it; null if no gate was applied)
3  has the column `gates` instead; it is defined in `dialog_gen.dataset.record`
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.parquet import open_parquet
from dialog_gen.dataset.record import (
    DIALOGUES,
    PAIR_COLUMNS,
    REJECTS,
    SCHEMA_VERSION,
    STATEMENTS,
    dialogues_schema,
    rejects_schema,
    stored_sampling,
)

_GATES_OF_VERSION_2 = (
    *("empty", "repetition", "truncation", "leak", "near_duplicate", "set_duplicate", "yes_bias", "language"),
    *("length", "similarity", "logprob", "self_consistency"),
)
_QUALITY_OF_VERSION_2 = [
    *(pa.field(f"gate_{name}", pa.list_(pa.float32())) for name in _GATES_OF_VERSION_2),
    pa.field("marks", pa.list_(pa.list_(pa.string()))),
]
_SINCE_VERSION_2 = ("source_sha256", *PAIR_COLUMNS)


def _older(schema: pa.Schema, version: int) -> pa.Schema:
    fields = list[pa.Field]()
    for field in schema:
        if version == 1 and field.name in _SINCE_VERSION_2:
            continue
        fields += _QUALITY_OF_VERSION_2 if field.name == "gates" else [field]
    return pa.schema(fields)


_SCHEMAS: dict[int, tuple[pa.Schema, pa.Schema]] = {
    SCHEMA_VERSION: (DIALOGUES, REJECTS),
    **{version: (_older(DIALOGUES, version), _older(REJECTS, version)) for version in (2, 1)},
}


def schema_of(path: str, version: int, stored: pa.Schema | None = None) -> pa.Schema:
    """The schema of a file (data/* or rejects/*) in a version of the record.

    `stored` is the schema that the file has: of the record's optional columns and fields, its own are in the result.
    """
    if version != SCHEMA_VERSION or stored is None:
        return _SCHEMAS[version][not path.startswith("data/")]
    return _current(stored, rejects=not path.startswith("data/"))


def _current(stored: pa.Schema, *, rejects: bool) -> pa.Schema:
    sampling = stored_sampling(stored)
    return rejects_schema(sampling) if rejects else dialogues_schema(stored.names, sampling)


def pair_columns(version: int) -> list[str]:
    """The columns that have one entry per question-answer pair if they are not null."""
    names = [*PAIR_COLUMNS, *(field.name for field in _QUALITY_OF_VERSION_2)]
    optional = [STATEMENTS] if version == SCHEMA_VERSION else []
    return [*(name for name in names if name in _SCHEMAS[version][0].names), *optional]


def is_known(path: str, schema: pa.Schema) -> bool:
    """Whether the file's columns are exactly those of some version, in the same order."""
    found = _types(schema)
    return any(found == _types(schema_of(path, version, schema)) for version in _SCHEMAS)


def _types(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in schema]


class RowFile:
    """A Parquet file of a dataset; its rows are read as rows of the current version, whatever version the file has.

    The methods raise pyarrow.ArrowException or OSError if the file is damaged.
    """

    def __init__(self, file: Any) -> None:
        """`file` is a path or an open file."""
        self.parquet: pq.ParquetFile = open_parquet(file)
        stored: list[str] = self.parquet.schema_arrow.names
        self._stored = stored
        self._schema = _current(self.parquet.schema_arrow, rejects="status" in stored)
        added = [name for name in self._schema.names if name in _SINCE_VERSION_2 and name not in stored]
        self.names = [*stored, *added]
        """The columns that can be read."""

    def row_groups(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows of each row group, about a hundred rows each, with the given columns or with all."""
        for number in range(self.parquet.num_row_groups):
            yield self.row_group(number, columns)

    def row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of one row group, with the given columns or with all."""
        return self._current(self.parquet.read_row_group(number, columns=self._to_read(columns)), columns)

    def batches(self, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows in batches of at most `rows`, with the given columns or with all."""
        for batch in self.parquet.iter_batches(rows, columns=self._to_read(columns)):
            yield self._current(pa.Table.from_batches([batch]), columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, with the given columns or with all."""
        return self._current(self.parquet.read(columns=self._to_read(columns)), columns)

    def _to_read(self, columns: Sequence[str] | None) -> list[str] | None:
        if columns is None:
            return None
        wanted = [name for name in columns if name in self._stored]
        if "gates" in columns and "marks" in self._stored:
            wanted += [name for name in self._stored if name == "marks" or name.startswith("gate_")]
        return wanted or self._stored[:1]

    def _current(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        wanted = self._schema.names if columns is None else [name for name in columns if name in self.names]
        present = table.schema.names
        if set(wanted) <= set(present):
            return table if columns is None else table.select(wanted)
        fields, arrays = list[pa.Field](), list[Any]()
        for name in wanted:
            if name in present:
                fields.append(table.schema.field(name))
                arrays.append(table[name])
            else:
                field = self._schema.field(name)
                fields.append(field)
                is_version_2 = name == "gates" and "marks" in present
                arrays.append(_gates(table) if is_version_2 else pa.nulls(table.num_rows, field.type))
        return pa.table(arrays, schema=pa.schema(fields))


def _gates(table: pa.Table) -> pa.Array:
    """The column `gates` made from the columns of version 2."""
    scores = [name for name in table.schema.names if name.startswith("gate_")]
    rows = table.select([*scores, "marks"]).to_pylist()
    return pa.array([_gates_of(row) for row in rows], DIALOGUES.field("gates").type)


def _gates_of(row: dict[str, Any]) -> list[list[dict[str, Any]]] | None:
    marks = row["marks"]
    if marks is None:
        return None
    applied = {
        name.removeprefix("gate_"): scores for name, scores in row.items() if name != "marks" and scores is not None
    }
    if any(len(scores) != len(marks) for scores in applied.values()):
        raise pa.ArrowInvalid("scores and marks have different numbers of pairs")
    return [
        [{"gate": name, "score": scores[place], "marked": name in (marking or ())} for name, scores in applied.items()]
        for place, marking in enumerate(marks)
    ]
