"""An engine with all its settings: it is checked first and started later, perhaps in another process."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.output import output_to
from dialog_gen.engines.base import (
    ENGINES,
    CoreAddress,
    Engine,
    EngineCore,
    EngineEntry,
    EngineHangsError,
    EngineOptions,
    SharedEngineEntry,
)
from dialog_gen.engines.watchdog import start_watched
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """The engine to start, its model and its settings. Plain data, which can be sent to another process."""

    name: str
    model: GeneratorModel
    sampling: Sampling
    options: EngineOptions
    address: CoreAddress | None = None
    """Where `start` finds a core that was started before; None: `start` starts an engine of this process."""

    def check(self, *, here: bool = True) -> None:
        """Raises UsageError if the engine cannot serve the model, and MissingExtraError if it is not installed.

        `here` says whether the engine is to run on this machine.
        """
        self._entry().check(self.model, self.options)
        if here:
            self._entry().check_here(self.model, self.options)

    @property
    def is_shared(self) -> bool:
        """Whether several processes can feed one core of this engine."""
        return isinstance(self._entry(), SharedEngineEntry)

    def check_shared(self, frontends: int) -> None:
        """Raises UsageError if so many processes cannot feed one engine."""
        if frontends > 1:
            self._shared_entry(frontends)

    def start(self, log: Path) -> Engine:
        """Starts the engine, or connects to its core, in another thread; its output goes to the file `log`.

        Raises UsageError if its settings turn out to be wrong or this machine does not have the model, DialogGenError
        if the engine does not start, and
        EngineHangsError if that takes too long.
        """
        model = self._model_here()
        if (address := self.address) is not None:
            shared = self._shared_entry(address.clients)
            return self._started(lambda: shared.connect(model, self.sampling, self.options, address), log)
        entry = self._entry()
        return self._started(lambda: entry.start(model, self.sampling, self.options), log)

    def start_core(self, log: Path, clients: int) -> EngineCore:
        """Starts a core for several processes, like `start`. Raises UsageError if the engine has no such core."""
        shared, model = self._shared_entry(clients), self._model_here()
        return self._started(lambda: shared.start_core(model, self.sampling, self.options, clients), log)

    def _entry(self) -> EngineEntry:
        return ENGINES.get(self.name, where="--engine")

    def _shared_entry(self, frontends: int) -> SharedEngineEntry:
        if isinstance(entry := self._entry(), SharedEngineEntry):
            return entry
        raise UsageError(
            f"--frontends {frontends}: the engine {self.name} cannot be fed by several processes; leave it out."
        )

    def _started(self, start: Callable[[], T], log: Path) -> T:
        try:
            with output_to(log):
                return start_watched(start, self.options.timeout_s)
        except EngineHangsError as error:
            raise EngineHangsError(f"{self.name} did not start on {self.model.name}: {error} (log: {log})") from error
        except (KeyboardInterrupt, UsageError):
            raise
        except BaseException as error:  # the libraries raise errors of any kind here
            cause = first_error(log) or f"{type(error).__name__}: {error}"
            raise DialogGenError(f"{self.name} did not start on {self.model.name}: {cause} (log: {log})") from error

    def _model_here(self) -> GeneratorModel:
        """The model with its folder on this machine, which may be another one than the command was given on."""
        model = self.model
        if model.folder is None or model.folder.exists():
            return model
        try:
            revision = None if model.shipped else model.revision
            return ENGINES.get(self.name).resolve(model.name, revision=revision)
        except UsageError as error:
            raise UsageError(
                f"{os.uname().nodename} does not have the model folder {model.folder}: put it under the same path on "
                f"every machine ({error})"
            ) from error


def first_error(log: Path) -> str | None:
    """The first error in a log; None if there is none. Later errors are mostly consequences of the first."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if found := re.search(r"\b[A-Z]\w*(?:Error|Exception): \S.*", line):
                return found.group().strip()
    return None
