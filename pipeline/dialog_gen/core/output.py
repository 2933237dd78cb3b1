"""Keeps what libraries print away from the terminal: into a file, or nowhere."""

import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import TextIO


@contextmanager
def output_to(log: Path) -> Generator[None]:
    """Redirects the file descriptors of stdout and stderr to `log`; processes started in the block inherit this.

    Engines print much, from several processes, partly to stdout.
    """
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


@contextmanager
def quiet() -> Generator[None]:
    """Drops the warnings and the output of libraries that are asked in the block; errors are raised as ever.

    Before a run there is no log for them yet, and the user's output or error should stand alone.
    """
    with warnings.catch_warnings(), output_to(Path(os.devnull)):
        warnings.simplefilter("ignore")
        out, err = (_stream(descriptor) for descriptor in (1, 2))
        with redirect_stdout(out), redirect_stderr(err):
            yield


@cache
def _stream(descriptor: int) -> TextIO:
    """A stream to wherever the descriptor leads at the time. A notebook's and pytest's own streams lead elsewhere.

    It is never closed: loggers that libraries set up when they are imported keep their stream.
    """
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
