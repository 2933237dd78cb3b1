"""Disks that are full."""

import resource
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def full_at(size: int) -> Generator[None]:
    """The system refuses to write a file beyond `size` bytes: EFBIG comes from where ENOSPC would."""
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
