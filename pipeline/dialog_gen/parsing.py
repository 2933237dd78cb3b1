"""The parsers of answers under the name by which other programs import them."""

from dialog_gen.protocols.parsing import parse_answer, parse_qa_list

__all__ = ["parse_answer", "parse_qa_list"]
