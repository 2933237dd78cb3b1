"""Things of one kind, known by name: engines, gates, sources, systems, tasks and so on. All registries have this form.

A module of the registry's package defines one and registers it:

    @GATES.register("length")
    class Length(Gate): ...

Nothing else has to be changed: the registry imports every module of its package when it is first asked. So that help
texts and lists stay fast, such a module imports nothing slow at its top (torch, vllm, ...); it does so when it works.

Other packages add their own through entry points. In their pyproject.toml:

    [project.entry-points."dialog_gen.gates"]
    politeness = "my_package.politeness"            # a module that registers "politeness" as above,
    politeness = "my_package.politeness:Politeness" # or the thing itself
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
    """Name -> thing of one kind. `kind` is its name in messages, such as "gate".

    `package` holds the modules that register; `group` is that of the entry points, by default the package's name.
    """

    def __init__(self, kind: str, package: str, *, group: str | None = None) -> None:
        self.kind, self.package, self.group = kind, package, group or package
        self._things: dict[str, T] = {}
        self._plugins: dict[str, EntryPoint] = {}
        self._searched = False

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorates a class or function, or is called with an instance: `register("length")(thing)` returns `thing`.

        Raises ValueError for a name that is taken.
        """

        def add(thing: Registered) -> Registered:
            if self._things.get(name, thing) is not thing:
                raise ValueError(f"there are two {self.kind}s named {name!r}")
            self._things[name] = thing  # type: ignore[assignment] - a decorator keeps the type of what it decorates
            return thing

        return add

    def names(self) -> list[str]:
        """All names, sorted: first this package's own, then those of other packages."""
        return [*self.own(), *sorted({*self._things, *self._plugins} - {*self.own()})]

    def get(self, name: str, *, where: str = "") -> T:
        """The thing of that name; `where` begins the message of an error, such as "--engine".

        Raises UsageError for an unknown name, naming the known ones, and for one whose package fails to import.
        """
        self._search()
        if name not in self._things and name in self._plugins:
            self._load(self._plugins[name])
        if name not in self._things:
            begin = f"{where} {name}: unknown {self.kind}" if where else f"unknown {self.kind} {name!r}"
            raise UsageError(f"{begin}; {did_you_mean(name, self.names())}.")
        return self._things[name]

    def all(self) -> dict[str, T]:
        """Name -> thing. Raises UsageError where another package's fails to import."""
        return {name: self.get(name) for name in self.names()}

    def own(self) -> dict[str, T]:
        """Name -> thing, sorted, of those that this package itself defines; other packages are not imported."""
        self._search()
        return {name: thing for name, thing in sorted(self._things.items()) if name not in self._plugins}

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
                f"{error}. Mend or uninstall that package. Known: {others}."
            ) from error
        if not isinstance(found, ModuleType):
            self.register(point.name)(found)
        elif point.name not in self._things:
            raise UsageError(
                f"{self.kind} {point.name!r}{owner}: the module {point.value} does not register that name. "
                "Mend or uninstall that package."
            )
