"""Parquet with the dialogue as question-answer pairs, as in The Cauldron and FineVision."""

from typing import ClassVar

import pyarrow as pa

from dialog_gen.dataset.record import PAIR_TYPE
from dialog_gen.publish.formats.base import FORMATS, Sample
from dialog_gen.publish.formats.parquet import DialogueParquetWriter


@FORMATS.register("texts")
class TextsWriter(DialogueParquetWriter):
    """OUT/*.parquet with `images`, `texts`, a list of {user, assistant}, and `statements` if there are some."""

    description = "OUT/*.parquet with images and texts, a list of {user, assistant}"
    column = "texts"
    with_statements = True
    turn_type: ClassVar[pa.DataType] = PAIR_TYPE

    def dialogue(self, sample: Sample) -> list[dict[str, str]]:
        """The pairs of the sample, unchanged."""
        return sample.pairs
