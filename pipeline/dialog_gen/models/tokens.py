"""The special tokens of a model, read from its tokenizer's files: no tokenizer is loaded, which takes seconds."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.models.json_files import read_object
from dialog_gen.protocols.parsing import marks_thought

IMAGE = "<image>"
"""The placeholder of an image in the prompts of many models."""
_LEAST_LENGTH = 3
_SUFFIX = "_token"
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json", "*.tiktoken")
"""Files of which a folder needs one, as patterns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecialTokens:
    """The special tokens of a tokenizer. Plain data, which can be sent to another process."""

    named: tuple[tuple[str, str], ...] = ()
    """Names and texts, such as ("bos_token", "<s>"): the variables that a chat template may use."""
    texts: tuple[str, ...] = (IMAGE,)
    """The texts of all of them, the longest first."""
    ids: tuple[tuple[int, str], ...] = ()
    """Ids and texts, as far as the files say."""

    @property
    def bos(self) -> str | None:
        """The token for the beginning of a text; None if there is none."""
        return dict(self.named).get("bos_token")

    @property
    def mark_thoughts(self) -> bool:
        """Whether an answer without special tokens lacks the marks at which the model's thinking begins and ends."""
        return any(map(marks_thought, self.texts))

    def text_of(self, token_id: int) -> str | None:
        """The text of a special token; None if it is no special token."""
        return dict(self.ids).get(token_id)

    def added_to(self, prompt: str) -> bool:
        """Whether the tokenizer must add its own tokens to a rendered prompt; not if the template wrote the first one.

        This is the rule of transformers' processors.
        """
        return not (self.bos and prompt.startswith(self.bos))

    def found_in(self, text: str) -> str | None:
        """The first special token that a text has; None if it has none."""
        found = _pattern(self.texts).search(text)
        return found and found[0]

    def removed_from(self, text: str) -> str:
        """The text with a space for each special token, so that what a model wrote is read as text alone.

        A space, since the rest could form another one: `<<image>image>`.
        """
        return _pattern(self.texts).sub(" ", text)


def special_tokens(folder: Path, config: Mapping[str, Any] | None = None) -> SpecialTokens:
    """The special tokens of a model folder; only `<image>` if it has no tokenizer files.

    Added tokens whose ids `config`, the content of config.json, names are special, too, such as `image_token_id`.
    Raises UsageError if a file is damaged.
    """
    stored = _read(folder / "tokenizer_config.json")
    named = _named(_read(folder / "special_tokens_map.json")) | _named(stored)
    ids = _added(folder, stored, named_in(config or {}))
    others = [text for key in ("additional_special_tokens", "extra_special_tokens") for text in _texts(stored.get(key))]
    texts = {IMAGE, *named.values(), *ids.values(), *others}
    return SpecialTokens(
        named=tuple(sorted(named.items())),
        # A word such as "user" can be a special token; removing it would spoil answers.
        texts=tuple(sorted(filter(_is_markup, texts), key=lambda text: (-len(text), text))),
        ids=tuple(sorted(ids.items())),
    )


def check_vocabulary(folder: Path) -> None:
    """Raises UsageError if a model folder has no vocabulary of a tokenizer, in any of its file formats."""
    if not any(file.stat().st_size for name in _VOCABULARIES for file in folder.glob(name)):
        raise UsageError(
            f"{folder} has no tokenizer.json, nor another vocabulary: no engine can read a prompt. Put the tokenizer's "
            "files into the folder."
        )


def check_named_tokens(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UsageError if the token of the image that the content of config.json names is not in the tokenizer."""
    tokenizer = _tokenizer(folder)
    for key, token_id in named_in(config).items():
        if tokenizer is None or not key.startswith("image_token"):
            continue
        # The library takes numbers of 32 bits.
        if not 0 <= token_id < 1 << 32 or tokenizer.id_to_token(token_id) is None:
            raise UsageError(
                f"{folder / 'config.json'}: {key} = {token_id} is no token of the tokenizer, which has "
                f"{tokenizer.get_vocab_size()}: fetch config.json and the tokenizer's files again, of one revision."
            )


def token_counter(folder: Path) -> Callable[[str], int] | None:
    """Counts the tokens of a text as the engines do, without loading the model; None if there is no tokenizer.json.

    Raises UsageError if it is damaged.
    """
    tokenizer = _tokenizer(folder)
    return None if tokenizer is None else lambda text: len(tokenizer.encode(text).ids)


def _tokenizer(folder: Path) -> Any:
    file = folder / "tokenizer.json"
    return _loaded(file, file.stat().st_mtime_ns) if file.is_file() else None


@lru_cache(maxsize=2)
def _loaded(file: Path, _changed_ns: int) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - the library raises nothing more precise
        raise UsageError(f"{file} is no whole tokenizer ({error}): fetch it again.") from None


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def named_in(config: Mapping[str, Any]) -> dict[str, int]:
    """The ids of tokens that the content of config.json names, such as `image_token_id` or `boi_token_index`."""
    named = {key: value for key, value in config.items() if key.endswith(("_token_id", "_token_index"))}
    return {key: value for key, value in named.items() if type(value) is int}


def _added(folder: Path, stored: Mapping[str, Any], named: Mapping[str, int]) -> dict[int, str]:
    # tokenizer.json has tens of megabytes with some vocabularies, so it is read only if it must be.
    added: Any = stored.get("added_tokens_decoder")
    if not isinstance(added, dict) or not added:
        listed: Any = _read(folder / "tokenizer.json").get("added_tokens", [])
        try:
            added = {token["id"]: token for token in listed}
        except (KeyError, TypeError):
            raise UsageError(f"{folder / 'tokenizer.json'} lists its special tokens wrongly: fetch it again.") from None
    try:
        special = {key: token for key, token in added.items() if token.get("special") or int(key) in named.values()}
        return {int(key): str(token["content"]) for key, token in special.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"the tokenizer files of {folder} list their special tokens wrongly: fetch them again."
        ) from None


def _named(stored: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that have names, in all forms that versions of transformers have written."""
    every = dict(stored)
    for key in ("model_specific_special_tokens", "extra_special_tokens"):
        extra = stored.get(key)
        every |= extra if isinstance(extra, dict) else {}
    found = {name: _text(value) for name, value in every.items() if name.endswith(_SUFFIX)}
    return {name: text for name, text in found.items() if text}


def _texts(value: Any) -> list[str]:
    items: Iterable[Any] = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for text in map(_text, items) if text]


def _text(value: Any) -> str | None:
    content: Any = value.get("content") if isinstance(value, dict) else value  # type: ignore[union-attr]
    return content if isinstance(content, str) and content else None


def _is_markup(text: str) -> bool:
    return len(text) >= _LEAST_LENGTH and bool(text.strip()) and not text.isalnum()


@lru_cache(maxsize=16)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)))
