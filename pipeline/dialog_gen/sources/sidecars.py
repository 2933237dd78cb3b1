"""The texts beside an image: its caption (.txt) and its metadata (.json), as img2dataset writes them."""

import json
import logging
import math
from typing import Any, NamedTuple

from dialog_gen.core.json_text import parse_json

_log = logging.getLogger(__name__)


class Texts(NamedTuple):
    """What the texts beside an image say about it."""

    url: str | None
    caption: str | None
    sha256: str | None
    """Hash of the bytes that img2dataset fetched, before it resized and encoded them again."""


def read_texts(caption: bytes | None, metadata: bytes | None, image_id: str) -> Texts:
    """The texts of an image, from the content of its .txt and its .json; None for a file that does not exist.

    A .txt takes precedence over the caption in the .json. Bytes that are not UTF-8 become U+FFFD. A .json that cannot
    be read is logged and ignored.
    """
    about = {} if metadata is None else _parsed(metadata, image_id)
    described = text_of(about.get("caption"))
    text = described if caption is None else caption.decode("utf-8", "replace").strip() or None
    return Texts(text_of(about.get("url")), text, text_of(about.get("sha256")))


def text_of(value: object) -> str | None:
    """A text, or a number as text; None for anything else. Half a surrogate pair becomes "?"."""
    if isinstance(value, str):
        # JSON may contain half a surrogate pair ("\\ud83d"), which UTF-8 cannot encode.
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(value)


def _parsed(data: bytes, image_id: str) -> dict[str, Any]:
    try:
        parsed = parse_json(data.decode(json.detect_encoding(data), "replace"), finite=False)
    except ValueError:
        _log.warning("%s: its .json cannot be read and is ignored", image_id)
        return {}
    return parsed if isinstance(parsed, dict) else {}
