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
import pkgutil
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Generic, TypeVar

from dialog_gen.core.errors import DialogGenError, UsageError, did_you_mean

T = TypeVar("T")
Registered = TypeVar("Registered")


class Registry(Generic[T]):
    """Maps names to entries of one kind; `kind` is the word for it in messages, such as "gate".

    `package` contains the modules that register entries. `group` is the group of the entry points, by default the name
    of the package.
    """

    def __init__(self, kind: str, package: str, *, group: str | None = None) -> None:
        self.kind, self.package, self.group = kind, package, group or package
        self._entries: dict[str, T] = {}
        self._plugins: dict[str, EntryPoint] = {}
        self._searched = False

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator for a class or function; for an instance, call `register("length")(instance)`.

        Raises ValueError if the name is taken.
        """

        def add(entry: Registered) -> Registered:
            if self._entries.get(name, entry) is not entry:
                raise ValueError(f"there are two {self.kind}s named {name!r}")
            self._entries[name] = entry  # type: ignore[assignment] - a decorator keeps the type of what it decorates
            return entry

        return add

    def names(self) -> list[str]:
        """All names: first those of this package, then those of other packages, each sorted."""
        return [*self.own(), *sorted({*self._entries, *self._plugins} - {*self.own()})]

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
        """All entries by name. Raises UsageError if an entry of another package cannot be imported."""
        return {name: self.get(name) for name in self.names()}

    def own(self) -> dict[str, T]:
        """The entries of this package by name, sorted; other packages are not imported."""
        self._search()
        return {name: entry for name, entry in sorted(self._entries.items()) if name not in self._plugins}

    def _search(self) -> None:
        if self._searched:
            return
        self._searched = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._plugins = {point.name: point for point in sorted(entry_points(group=self.group), key=lambda p: p.name)}

    def _load(self, point: EntryPoint) -> None:
        owner = f" of the package {point.dist.name}" if point.dist else ""
        try:
            found = point.load()
        except DialogGenError:
            raise
        except Exception as error:
            others = ", ".join(name for name in self.names() if name != point.name)
            raise UsageError(
                f"{self.kind} {point.name!r}{owner} cannot be imported ({point.value}): {type(error).__name__}: "
                f"{error}. Repair or uninstall that package. Known: {others}."
            ) from error
        if not isinstance(found, ModuleType):
            self.register(point.name)(found)
        elif point.name not in self._entries:
            raise UsageError(
                f"{self.kind} {point.name!r}{owner}: the module {point.value} does not register that name. "
                "Repair or uninstall that package."
            )
