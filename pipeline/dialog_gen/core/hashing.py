"""Short hashes, for counting and sampling among more items than memory could hold by name."""

import hashlib


def hash_64(text: str) -> int:
    """A 64-bit hash of the text, uniform in [0, 2^64) and the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
