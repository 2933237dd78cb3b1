"""What engines say while they work goes to a file: pages of it, from several processes, some of it on stdout."""

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def output_to(log: Path) -> Generator[None]:
    """Sends stdout and stderr to `log`, down to the file descriptors; processes started within keep it so."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for target, original in enumerate(saved, 1):
            os.dup2(original, target)
            os.close(original)


def first_error(log: Path) -> str | None:
    """The first error that a log names; those after it mostly report that something else failed."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := re.search(r"\b[A-Z]\w*(?:Error|Exception): \S.*", line):
                return found.group().strip()
    return None
