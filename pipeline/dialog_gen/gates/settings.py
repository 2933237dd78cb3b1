"""The choice of gates and their settings: `--gates text`, `--gates length,leak` or a TOML file."""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, create_model

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.toml_files import fit_model, read_toml
from dialog_gen.core.version import __version__
from dialog_gen.gates.base import GATES, Limits, gates_in_order

GateSettings = Mapping[str, Limits]
"""Gate name -> its settings, for the gates to apply, sorted by `Gate.order` and name."""


def load_gates(spec: str | Mapping[str, Any]) -> GateSettings:
    """The chosen gates with their settings.

    `spec` is the path of a TOML file, or the content of such a file: gate name -> table of settings. Or it is a list of
    gate names separated by commas, where "text" means all gates that need no model and "all" means all gates; these
    gates get their default settings.

    Raises UsageError for an unknown name or setting, a file that cannot be read, and a gate that cannot be imported.
    """
    if not isinstance(spec, str):
        return _validated(spec, "gates")
    if Path(spec).suffix == ".toml":
        return _validated(read_toml(Path(spec), "gates"), f"gates file {spec}")
    chosen = set[str]()
    known = GATES.names()
    for name in (word.strip() for word in spec.split(",")):
        if name in ("all", "text"):
            chosen |= {each for each, gate in gates_in_order().items() if name == "all" or not gate.needs_model}
        elif name in known:
            chosen.add(name)
        else:
            hint = did_you_mean(name, [*known, "all", "text"])
            raise UsageError(f"--gates {spec}: unknown gate {name!r}: {hint}; or give a .toml file.")
    return {name: gate.settings_class() for name, gate in gates_in_order(chosen).items()}


def _validated(tables: Mapping[str, Any], where: str) -> GateSettings:
    if not tables:
        raise UsageError(f"{where}: no gate is named. Known: {', '.join(GATES.names())}.")
    # Gates that are not named are fields too, so that an error can suggest them. They are not imported.
    fields = {name: (GATES.get(name).settings_class if name in tables else None, None) for name in GATES.names()}
    model = create_model("Gates", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **cast("Any", fields))
    validated: BaseModel = fit_model(tables, model, where)
    return {name: getattr(validated, name) for name in gates_in_order(tables)}


def columns_read(names: Iterable[str]) -> list[str]:
    """The columns of the record that these gates read, and `texts`; sorted."""
    return sorted({"texts"}.union(*(GATES.get(name).columns for name in names)))


def versions(names: Iterable[str]) -> dict[str, str]:
    """Name -> version of dialog-gen and of the libraries that the scores of these gates depend on."""
    libraries = sorted({library for name in names for library in GATES.get(name).libraries})
    return {"dialog-gen": __version__, **{library: version(library) for library in libraries}}
