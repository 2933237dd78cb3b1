"""Parquet with the dialogue as chat messages, the form that chat templates and most trainers need."""

from typing import ClassVar

import pyarrow as pa

from dialog_gen.publish.formats.base import FORMATS, Sample
from dialog_gen.publish.formats.parquet import DialogueParquetWriter


@FORMATS.register("messages")
class MessagesWriter(DialogueParquetWriter):
    """OUT/*.parquet with `images` and `messages`, a list of {role, content}."""

    description = "OUT/*.parquet with images and messages, a list of {role, content}"
    column = "messages"
    turn_type: ClassVar[pa.DataType] = pa.struct([("role", pa.string()), ("content", pa.string())])

    def dialogue(self, sample: Sample) -> list[dict[str, str]]:
        """Two messages per pair; the roles are `user` and `assistant`."""
        return [{"role": role, "content": pair[role]} for pair in sample.pairs for role in ("user", "assistant")]
