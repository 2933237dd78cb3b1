"""An engine with all its settings: it is checked first and started later, perhaps in another process."""

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dialog_gen.core.errors import DialogGenError
from dialog_gen.engines.base import ENGINES, Engine, EngineOptions
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The engine to start, its model and its settings. Plain data, which can be sent to another process."""

    name: str
    model: GeneratorModel
    sampling: Sampling
    options: EngineOptions

    def check(self) -> None:
        """Raises UsageError if the engine cannot serve the model, and MissingExtraError if it is not installed."""
        ENGINES.get(self.name, where="--engine").check(self.model, self.options)

    def start(self, log: Path) -> Engine:
        """Starts the engine; its output goes to the file `log`. Raises DialogGenError if it does not start."""
        try:
            with output_to(log):
                return ENGINES.get(self.name, where="--engine").start(self.model, self.sampling, self.options)
        except Exception as error:  # the libraries raise errors of any kind here
            cause = first_error(log) or f"{type(error).__name__}: {error}"
            raise DialogGenError(f"{self.name} did not start on {self.model.name}: {cause} (log: {log})") from error


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


def first_error(log: Path) -> str | None:
    """The first error in a log; None if there is none. Later errors are mostly consequences of the first."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := re.search(r"\b[A-Z]\w*(?:Error|Exception): \S.*", line):
                return found.group().strip()
    return None
