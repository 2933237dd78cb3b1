"""What runs pay to servers: one budget a run, and the costs of all runs of a dataset, also of those that failed."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.notes import json_object
from dialog_gen.dataset.writer import DatasetWriter
from dialog_gen.engines.base import ServerUse
from dialog_gen.executors.base import ExecutorOptions
from dialog_gen.generation.plan import RunPlan
from dialog_gen.generation.summary import RunResult

_COST = "cost_of_all_runs"


def check_one_budget(max_cost: float | None, executor: str, options: ExecutorOptions) -> None:
    """Raises UsageError if several engines, each of which knows only its own costs, would share a budget."""
    if max_cost is None or (executor == "local" and (options.engines or 1) == (options.frontends or 1) == 1):
        return
    given = f"--engines {options.engines}" if executor == "local" else f"--executor {executor}"
    raise UsageError(
        f"--max-cost {max_cost:g} with {given}: only a single engine keeps to a budget. Leave out {given}: one engine "
        "sends many requests at a time, to several servers."
    )


def server_report(plan: RunPlan, served: ServerUse | None, paid_before: float | None) -> dict[str, Any]:
    """The entry `server` of a report, for engines whose model is at a server; `paid_before` by all earlier runs."""
    if served is None:
        return {}
    total = None if served.cost is None and paid_before is None else (served.cost or 0.0) + (paid_before or 0.0)
    return {"server": {"endpoints": list(plan.engine.options.endpoints), **asdict(served), _COST: total}}


def added_up(reports: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry `server` of several reports as one: figures are added up, endpoints are collected."""
    servers = [server for report in reports if isinstance(server := report.get("server"), dict)]
    if not servers:
        return {}
    endpoints = dict.fromkeys(endpoint for server in servers for endpoint in server["endpoints"])
    figures: dict[str, Any] = {}
    for key, value in (item for server in servers for item in server.items() if item[0] != "endpoints"):
        figures[key] = value if figures.get(key) is None else figures[key] + (value or 0)
    return {"server": {"endpoints": list(endpoints), **figures}}


def paid_before(folder: DatasetFolder, report: str) -> float | None:
    """What all runs that wrote to `report` have paid; None if nothing is known.

    A run that fails writes that to a file of its own, because run.json says that a run has finished.
    """
    servers = ((json_object(folder, name) or {}).get("server") for name in (report, _failed(report)))
    costs = [server.get(_COST) for server in servers if isinstance(server, dict)]
    # It only grows: the larger one is the later one.
    return max((cost for cost in costs if isinstance(cost, int | float)), default=None)


@contextmanager
def noting_costs(store: DatasetWriter, report: str, plan: RunPlan, result: RunResult) -> Generator[float | None]:
    """If the block raises, what was paid is written to the dataset folder; its end means that `report` is written.

    Yields what earlier runs have paid, as `paid_before`.
    """
    before = paid_before(store, report)
    try:
        yield before
    except BaseException:
        if result.served is not None:
            with suppress(DialogGenError):  # the disk may be full: the first error says more
                store.put_json(_failed(report), server_report(plan, result.served, before))
        raise
    if result.served is not None:
        store.remove(_failed(report))


def _failed(report: str) -> str:
    return report.replace("run", "spent", 1)
