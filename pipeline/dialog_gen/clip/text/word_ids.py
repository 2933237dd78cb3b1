"""The token ids of open_clip's tokenizers, many times faster: words that were met before are looked up.

The ids are exactly those of the tokenizer. Its own functions clean any text that they could change in another way than
the short form here, and its own BPE splits every word once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import open_clip.tokenizer
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

_MOST_WORDS = 500_000
"""The table of words starts anew when it is larger, so that memory stays bounded (about 100 MB)."""

Clean = Callable[[str], str]

# Each is what open_clip's function does with a text that is plain, see `_is_plain`.
_PLAIN: dict[Any, Clean] = {
    open_clip.tokenizer.get_clean_fn("lower"): lambda text: " ".join(text.split()).lower(),
    open_clip.tokenizer.get_clean_fn("whitespace"): lambda text: " ".join(text.split()),
    open_clip.tokenizer.get_clean_fn("canonicalize"): open_clip.tokenizer.canonicalize_text,
}


def fast_ids(tokenizer: Any) -> Callable[[Sequence[str], int], list[list[int]]] | None:
    """A function of texts and a length that gives the ids of `tokenizer(texts, context_length=length)`.

    The function gives them without padding at their end. None for a tokenizer of another kind than is known here.
    """
    if type(tokenizer) is SimpleTokenizer:
        # Additional special tokens are parts of a regular expression, and might match spaces.
        plain = tokenizer.reduction_fn is None and len(tokenizer.all_special_ids) == 2
        return _WordIds(tokenizer) if plain and tokenizer.clean_fn in _PLAIN else None
    inner: Any = getattr(tokenizer, "tokenizer", None)
    plain = type(tokenizer) is HFTokenizer and not tokenizer.tokenizer_mode and not tokenizer.strip_sep_token
    if plain and tokenizer.clean_fn in _PLAIN and inner.is_fast and inner.padding_side == "right":
        return _HuggingFaceIds(tokenizer)
    return None


class _WordIds:
    """open_clip's own tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._clean = tokenizer, partial(_cleaned, tokenizer.clean_fn)
        self._words = dict[str, list[int]]()

    def __call__(self, texts: Sequence[str], length: int) -> list[list[int]]:
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        clean, words = self._clean, self._words
        found: list[list[int]] = []
        for text in texts:
            ids = [start]
            # No alternative of the tokenizer's pattern matches a space, and there is no other white space now.
            for word in clean(text).split(" "):
                ids += words.get(word) or self._split(word)
            del ids[length - 1 :]
            ids.append(end)
            found.append(ids)
        return found

    def _split(self, word: str) -> list[int]:
        if len(self._words) >= _MOST_WORDS:
            self._words.clear()
            special = [self._tokenizer.decoder[number] for number in self._tokenizer.all_special_ids]
            self._tokenizer.cache = {token: token for token in special}
        ids: list[int] = []
        for token in self._tokenizer.pat.findall(word):
            characters = "".join(self._tokenizer.byte_encoder[byte] for byte in token.encode())
            ids += [self._tokenizer.encoder[part] for part in self._tokenizer.bpe(characters).split(" ")]
        self._words[word] = ids
        return ids


class _HuggingFaceIds:
    """A tokenizer of Hugging Face's in open_clip's wrapper: one call for many texts, and no padding."""

    def __init__(self, tokenizer: Any) -> None:
        self._inner, self._clean = tokenizer.tokenizer, partial(_cleaned, tokenizer.clean_fn)

    def __call__(self, texts: Sequence[str], length: int) -> list[list[int]]:
        cleaned = [self._clean(text) for text in texts]
        options = {"return_attention_mask": False, "return_token_type_ids": False}
        return self._inner(cleaned, max_length=length, truncation=True, **options)["input_ids"]


def _cleaned(clean: Clean, text: str) -> str:
    return _PLAIN[clean](text) if _is_plain(text) else clean(text)


def _is_plain(text: str) -> bool:
    """Whether ftfy and HTML entities do not change the text: printable ASCII, line ends and tabs, without "&"."""
    if not text.isascii() or "&" in text:
        return False
    return text.isprintable() or text.replace("\n", " ").replace("\t", " ").isprintable()
