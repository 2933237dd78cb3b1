"""Which columns of a dataset have values: readers need not load, nor the Hub's viewer show, those that are all null."""

import pyarrow.parquet as pq


class FilledColumns:
    """Collects the columns that have at least one value that is not null, from the footers of files: reads no rows."""

    def __init__(self) -> None:
        self._found: dict[str, set[str]] = {"data": set(), "rejects": set()}

    def add(self, part: str, metadata: pq.FileMetaData) -> None:
        """Counts a file of "data" or "rejects"."""
        found = self._found[part]
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            for place in range(group.num_columns):
                column = group.column(place)
                name = column.path_in_schema.partition(".")[0]
                # A column without statistics may have values.
                if name not in found and (column.statistics is None or column.statistics.num_values):
                    found.add(name)

    def of(self, part: str) -> frozenset[str]:
        """The columns with values; those within a list or a struct count for their column."""
        return frozenset(self._found[part])
