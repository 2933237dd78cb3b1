"""Hashes: short ones of texts, for counting and sampling many items, and SHA-256 of JSON values and of images."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def hash_64(text: str) -> int:
    """A 64-bit hash of the text, uniform in [0, 2^64) and the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def sha256_json(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, in hex; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256_images(images: Sequence[bytes]) -> str:
    """SHA-256 of the images of a sample, in hex: of the bytes of a single image.

    For several images, it is the hash of their own hashes, written one after another in hex.
    """
    hashes = [hashlib.sha256(data).hexdigest() for data in images]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
