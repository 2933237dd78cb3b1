"""The words of texts in any script, and the similarity of two texts."""

import re
import unicodedata
from functools import lru_cache

# Scripts that put no spaces between words: each of their letters counts as a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
# Combining marks: they belong to the letter before them, but `\w` does not match them.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_WORD = re.compile(
    rf"[{_UNSPACED}]|[^\W_{_UNSPACED}](?:[^\W_{_UNSPACED}]|[{_MARKS}]|['\u2019](?=\w)|(?<=\d)[.,](?=\d))*"
)

_SHINGLE = 3

FUNCTION_WORDS = frozenset(
    "a an the this that these those there here it its it's he she they them his her their i you we my your our "  # noqa: SIM905
    "is are was were be been being am do does did has have had can could will would may might must should "
    "of in on at to from by with for as and but so than then that's there's what which who whom whose where when why "
    "how".split()
)
"""English words without content of their own. "yes", "no" and "not" have content, so they are not in the set."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation: "It's 3.5 m, yes!" -> it's, 3.5, m, yes."""
    return list(_words(text))


@lru_cache(1 << 12)
def _words(text: str) -> tuple[str, ...]:
    # Cached, since one gate after another needs the words of the same hundred rows.
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")))


def shingles(text: str) -> frozenset[str]:
    """All sequences of three characters of a text, whose words are joined by single spaces first.

    A text of fewer than three characters is a single shingle.
    """
    plain = " ".join(words(text))
    return frozenset(plain[i : i + _SHINGLE] for i in range(max(len(plain) - _SHINGLE + 1, 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """|A ∩ B| / |A ∪ B|, in [0, 1]."""  # noqa: RUF002
    return len(first & second) / len(first | second)


def pair_text(pair: dict[str, str]) -> str:
    """Question and answer as one text."""
    return f"{pair['user']} {pair['assistant']}"
