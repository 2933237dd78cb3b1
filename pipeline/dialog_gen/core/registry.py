"""Registries of named entries: engines, gates, sources, systems, tasks and so on. All registries work the same way.

A module of the registry's package defines an entry and registers it:

    @GATES.register("length")
    class Length(Gate): ...

Nothing else has to be changed: the registry imports all modules of its package at its first use. To keep help texts and
lists fast, such a module must not import slow packages (torch, vllm, ...) at its top, only in the functions that use
them.

Other packages add entries through entry points. In their pyproject.toml:

    [project.entry-points."dialog_gen.gates"]
    politeness = "my_package.politeness"            # a module that registers "politeness" as above,
    politeness = "my_package.politeness:Politeness" # or the entry itself
"""

import importlib
import inspect
import logging
import pkgutil
import threading
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from dialog_gen.core.errors import UsageError, did_you_mean

T = TypeVar("T")
Registered = TypeVar("Registered")

_log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Maps names to entries of one kind; `kind` is the word for it in messages, such as "gate".

    `package` contains the modules that register entries. `group` is the group of the entry points, by default the name
    of the package. An entry must be an instance of `base` or, with `classes`, a subclass of it.
    """

    def __init__(
        self, kind: str, package: str, *, base: type[Any] = object, classes: bool = False, group: str | None = None
    ) -> None:
        self.kind, self.package, self.group = kind, package, group or package
        self.base, self.classes = base, classes
        self._entries: dict[str, T] = {}
        self._own = set[str]()
        self._plugins: dict[str, EntryPoint] = {}
        self._broken = set[str]()
        self._searched = False
        # A run and the thread that counts its images may both be the first to use it. A module that uses the registry
        # while it is imported takes the lock again.
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator for a class or function; for an instance, call `register("length")(instance)`.

        Raises ValueError if the name is taken, TypeError for an entry of another kind.
        """
        frame = inspect.currentframe()
        caller = frame.f_back.f_globals.get("__name__", "") if frame and frame.f_back else ""

        def add(entry: Registered) -> Registered:
            if not self._fits(entry):
                raise TypeError(f"{name!r} is no {'subclass of ' if self.classes else ''}{self.base.__name__}")
            if self._entries.get(name, entry) is not entry:
                raise ValueError(f"there are two {self.kind}s named {name!r}")
            self._entries[name] = entry  # type: ignore[assignment] - a decorator keeps the type of what it decorates
            if caller == self.package or caller.startswith(f"{self.package}."):
                self._own.add(name)
            return entry

        return add

    def names(self) -> list[str]:
        """All names: first those of this package, then those of other packages, each sorted."""
        return [*self.own(), *sorted({*self._entries, *self._plugins} - self._own)]

    def get(self, name: str, *, where: str = "") -> T:
        """The entry of that name; `where`, such as "--engine", begins the message of an error.

        Raises UsageError for an unknown name (the message lists the known ones) and if the entry's package cannot be
        imported.
        """
        self._search()
        if name not in self._entries and name in self._plugins:
            self._load(self._plugins[name])
        if name not in self._entries:
            begin = f"{where} {name}: unknown {self.kind}" if where else f"unknown {self.kind} {name!r}"
            raise UsageError(f"{begin}; {did_you_mean(name, self.names())}.")
        return self._entries[name]

    def all(self) -> dict[str, T]:
        """All entries by name. One whose package cannot be imported is left out, with a warning the first time."""
        found: dict[str, T] = {}
        for name in self.names():
            try:
                found[name] = self.get(name)
            except UsageError as error:
                if name not in self._broken:
                    self._broken.add(name)
                    _log.warning("%s", error)
        return found

    def own(self) -> dict[str, T]:
        """The entries of this package by name, sorted; other packages are not imported."""
        self._search()
        return {name: self._entries[name] for name in sorted(self._own)}

    def _fits(self, entry: object) -> bool:
        if self.classes:
            return isinstance(entry, type) and issubclass(entry, self.base)
        return isinstance(entry, self.base) and (self.base is object or not isinstance(entry, type))

    def _search(self) -> None:
        with self._lock:
            if not self._searched:
                self._searched = True
                self._import()

    def _import(self) -> None:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.group):
            if point.name in self._own:
                _log.warning("%s %r%s is ignored: the name is taken", self.kind, point.name, _owner(point))
            else:
                self._plugins[point.name] = point

    def _load(self, point: EntryPoint) -> None:
        try:
            found = point.load()
            if not isinstance(found, ModuleType):
                self.register(point.name)(found)
            elif point.name not in self._entries:
                raise LookupError(f"the module registers no {self.kind} of that name")
        # A module may raise anything, SystemExit too; a Ctrl-C of the user is let through.
        except (Exception, SystemExit, GeneratorExit) as error:
            others = ", ".join(name for name in self.names() if name != point.name)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(
                f"{self.kind} {point.name!r}{_owner(point)} cannot be imported ({point.value}): {reason}. "
                f"Repair or uninstall that package. Known: {others}."
            ) from error


def _owner(point: EntryPoint) -> str:
    """The package of an entry point, for a message; a broken installation has no name."""
    name = point.dist.name if point.dist else None
    return f" of the package {name}" if name else ""
