"""Short hashes, for counting and drawing among more things than memory could hold by name."""

import hashlib


def hash_64(text: str) -> int:
    """As good as uniform in [0, 2^64); the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
