"""Hashes: short ones of texts, for counting and sampling many items, and SHA-256 of files and JSON values."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def hash_64(text: str) -> int:
    """A 64-bit hash of the text, uniform in [0, 2^64) and the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def sha256_of(file: Path) -> str:
    """SHA-256 of a local file, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sha256_json(value: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, in hex; it does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
