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
import inspect
import logging
import pkgutil
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from dialog_gen.core.errors import UsageError, did_you_mean

T = TypeVar("T")
Registered = TypeVar("Registered")

_log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Name -> thing of one kind. `kind` is its name in messages, such as "gate".

    `package` holds the modules that register; `group` is that of the entry points, by default the package's name. What
    is registered must be an instance of `base`, or a subclass of it where `classes`.
    """

    def __init__(
        self, kind: str, package: str, *, base: type[Any] = object, classes: bool = False, group: str | None = None
    ) -> None:
        self.kind, self.package, self.group = kind, package, group or package
        self.base, self.classes = base, classes
        self._things: dict[str, T] = {}
        self._own = set[str]()
        self._plugins: dict[str, EntryPoint] = {}
        self._broken = set[str]()
        self._searched = False

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorates a class or function, or is called with an instance: `register("length")(thing)` returns `thing`.

        Raises ValueError for a name that is taken, TypeError for a thing of another kind.
        """
        frame = inspect.currentframe()
        caller = frame.f_back.f_globals.get("__name__", "") if frame and frame.f_back else ""

        def add(thing: Registered) -> Registered:
            if not self._fits(thing):
                raise TypeError(f"{name!r} is no {'subclass of ' if self.classes else ''}{self.base.__name__}")
            if self._things.get(name, thing) is not thing:
                raise ValueError(f"there are two {self.kind}s named {name!r}")
            self._things[name] = thing  # type: ignore[assignment] - a decorator keeps the type of what it decorates
            if caller == self.package or caller.startswith(f"{self.package}."):
                self._own.add(name)
            return thing

        return add

    def names(self) -> list[str]:
        """All names, sorted: first this package's own, then those of other packages."""
        return [*self.own(), *sorted({*self._things, *self._plugins} - self._own)]

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
        """Name -> thing. One of another package that fails to import is left out, with a warning the first time."""
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
        """Name -> thing, sorted, of those that this package itself defines; other packages are not imported."""
        self._search()
        return {name: self._things[name] for name in sorted(self._own)}

    def _fits(self, thing: object) -> bool:
        if self.classes:
            return isinstance(thing, type) and issubclass(thing, self.base)
        return isinstance(thing, self.base) and (self.base is object or not isinstance(thing, type))

    def _search(self) -> None:
        if self._searched:
            return
        self._searched = True
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
            elif point.name not in self._things:
                raise LookupError(f"the module registers no {self.kind} of that name")
        # A module may raise anything, SystemExit too; a Ctrl-C of the user is let through.
        except (Exception, SystemExit, GeneratorExit) as error:
            others = ", ".join(name for name in self.names() if name != point.name)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(
                f"{self.kind} {point.name!r}{_owner(point)} cannot be imported ({point.value}): {reason}. "
                f"Fix or uninstall that package. Known: {others}."
            ) from error


def _owner(point: EntryPoint) -> str:
    """The package of an entry point, for a message; a broken installation has no name."""
    name = point.dist.name if point.dist else None
    return f" of the package {name}" if name else ""
