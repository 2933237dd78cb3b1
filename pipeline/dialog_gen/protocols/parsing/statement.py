"""The sentence in which a model restates a question and its answer."""
# ruff: noqa: RUF001 - full-width punctuation

import re

from dialog_gen.protocols.parsing.clean import plain, with_question_marks
from dialog_gen.protocols.parsing.languages import ASKING, words

_LEAST_WORDS = 3
_LEAST_CHARACTERS = 4
"""In scripts without spaces between words."""
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
_LABEL = re.compile(r"^[^\W\d_]+(?: [^\W\d_]+)?[:：] ?(?=(?:\S+ ){2}|\S*$)")
_QUOTES = "\"'“”„«»‘’「」 "
_ASKS = re.compile(f"[{ASKING}]")
_ENDS = re.compile(r"[.!。！।…][\"'”»’」)]*$")


def statement_of(text: str, *, question: str, truncated: bool) -> str | None:
    """The statement in a parsed answer, or None if it is no statement: a question, a word, a part of a sentence.

    `truncated` says that generation stopped at the token limit.
    """
    text = _LABEL.sub("", text)
    if text[:1] in _QUOTES and text[-1:] in _QUOTES:
        text = text.strip(_QUOTES)
    if (
        _ASKS.search(with_question_marks(text))
        or plain(text) == plain(question)
        or (truncated and not _ENDS.search(text))
    ):
        return None
    if not _ENDS.search(text) and text.split()[0].casefold() in words().asking:
        return None
    is_short = len(text.split()) < _LEAST_WORDS
    return None if is_short and len(_UNSPACED.findall(text)) < _LEAST_CHARACTERS else text
