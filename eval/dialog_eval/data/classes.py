"""Reads the names of classes, and the words for each that a model can understand."""

import io
import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from dialog_eval.results import unpack_or
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import read_regular
from dialog_gen.core.json_text import parse_json

IMAGENET = "imagenet"
"""In place of a file: the names that CLIP's authors gave the 1,000 classes of ImageNet."""

_log = logging.getLogger(__name__)

_WORDNET_ID = re.compile(r"n\d{8}", re.IGNORECASE)
_FORMS = (
    "one class per line, its id and a tab before its name, or ImageNet's own list "
    "(imagenet_class_index.json, LOC_synset_mapping.txt)"
)


def texts_of_classes(classes: Path | None, used: AbstractSet[str]) -> dict[str, str]:
    """Class -> its text in the prompts, for the classes in a file, for all of ImageNet's, or for the `used` ones.

    Of the `used` ones, ids of ImageNet's 1,000 classes, such as n01440764, get the names that CLIP's authors gave them.

    A file has one class per line: its name and, if its text differs, a tab and the text. It may also be a list of
    ImageNet's classes: the JSON {"0": ["n01440764", "tench"], ...} or lines such as "n01440764 tench, Tinca tinca", of
    which the first name is taken. In ImageNet's lists an underscore stands for a space.

    Warns of classes with the same text. Raises UsageError for files of another form; for one class only, which every
    image would be assigned; and for a class without a text, or with none but its id in WordNet, such as n01440764.
    """
    if classes is None:
        known = _imagenet() if any(map(_WORDNET_ID.fullmatch, used)) else {}
        texts = {name: known.get(name, name) for name in sorted(used)}
    elif str(classes) == IMAGENET:
        texts = _imagenet()
        if others := sorted(used - texts.keys()):
            raise UsageError(
                f"--classes {IMAGENET}: the class {others[0]!r} is none of the ids of ImageNet's {len(texts):,} "
                f"classes: give a file with {_FORMS}."
            )
    else:
        texts = _of_json(classes) if classes.suffix.lower() == ".json" else _of_lines(classes)
    if nameless := [name for name, text in texts.items() if _WORDNET_ID.fullmatch(text)]:
        raise UsageError(f"the class {nameless[0]} is an id of WordNet, not a name: give --classes with {_FORMS}.")
    if len(texts) == 1:
        raise UsageError(
            f"there is only one class, {next(iter(texts))!r}, so every answer would be right: give images with a "
            "folder for each class, or --classes with all of them."
        )
    _warn_of_equal(texts)
    return texts


def _warn_of_equal(texts: Mapping[str, str]) -> None:
    """Not an error: ImageNet's own lists have two cranes and two maillots."""
    named = defaultdict[str, list[str]](list)
    for name, text in texts.items():
        named[text].append(name)
    for text, names in named.items():
        if len(names) > 1:
            _log.warning(
                "the classes %s have the same text %r: only %s can be right", " and ".join(names), text, names[0]
            )


def _imagenet() -> dict[str, str]:
    """Id in WordNet -> name, of the classes of ILSVRC-2012."""
    import open_clip
    from timm.data.imagenet_info import ImageNetInfo

    # Both lists are in the order of the ids.
    return dict(zip(ImageNetInfo().label_names(), open_clip.IMAGENET_CLASSNAMES, strict=True))


def _of_json(path: Path) -> dict[str, str]:
    try:
        content: Any = parse_json(read_text(path))
    except ValueError as error:
        raise UsageError(f"{path} is no JSON: {error}.") from None
    items = list(content.items()) if isinstance(content, dict) else []
    pairs = [tuple(value) if isinstance(value, list) else (name, value) for name, value in items]
    if not pairs or not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise UsageError(f'{path} must be a JSON object such as {{"0": ["n01440764", "tench"]}}, or of id -> name.')
    return _unique(path, [(name, text.replace("_", " ").strip()) for name, text in pairs])


def _of_lines(path: Path) -> dict[str, str]:
    pairs: list[tuple[str, str]] = []
    for line in lines_of(path, "class"):
        name, tab, text = line.partition("\t")
        first, _, names = line.partition(" ")
        if not tab and names and _WORDNET_ID.fullmatch(first):
            name, text = first, names.partition(",")[0].replace("_", " ")
        pairs.append((name, text.strip() or name))
    return _unique(path, pairs)


def _unique(path: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name in texts:
            raise UsageError(f"{path} has the class {name!r} twice.")
        if not text:
            raise UsageError(f"{path}: the class {name!r} has an empty name.")
        texts[name] = text
    return texts


def lines_of(path: Path, what: str) -> list[str]:
    """The lines of a file that are not blank, stripped. Raises UsageError if it has none or is no UTF-8 text."""
    # As files are read: the other line breaks of Unicode are part of a text.
    lines = [line for one in io.StringIO(read_text(path), newline=None) if (line := one.strip())]
    if not lines:
        raise UsageError(f"{path} is empty: expected one {what} per line.")
    return lines


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Raises UsageError if it cannot be read or is no UTF-8 text."""
    try:
        return read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no UTF-8 text. {unpack_or(path, 'Save it as UTF-8.')}") from None
