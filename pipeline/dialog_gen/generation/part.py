"""A part of a run: some of the shards of one dataset, made without talking to those who make the other parts.

Part I of N has every N-th shard of the input, from the I-th on, counted from 0. Each part writes a report of its own;
the part that completes the dataset writes run.json.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.notes import RUN, json_object
from dialog_gen.dataset.verify import totals
from dialog_gen.dataset.writer import DatasetWriter
from dialog_gen.generation.bounds import cost_per_million
from dialog_gen.generation.spending import added_up
from dialog_gen.sources.base import InputShard


@dataclass(frozen=True, slots=True)
class Part:
    """Part number `index`, from 0, of `count` parts."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Reads "I/N". Raises UsageError if that is no part."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if found is None:
            raise UsageError(f"--part {text!r} is no part: give I/N, such as 0/8 for the first of 8 parts.")
        part = cls(int(found[1]), int(found[2]))
        if part.index >= part.count:
            parts = f"the last one is {part.count - 1}/{part.count}" if part.count else "give at least one part"
            raise UsageError(f"--part {text} does not exist: parts are counted from 0, {parts}.")
        return part

    @property
    def name(self) -> str:
        """A name for files, such as "0-of-8"."""
        return f"{self.index}-of-{self.count}"

    def of(self, shards: Iterator[InputShard]) -> Iterator[InputShard]:
        """The shards of this part; `shards` are those of the whole input."""
        return islice(shards, self.index, None, self.count)

    def report_name(self) -> str:
        """The name of the file with the report about this part."""
        return f"run-{self.name}.json"


_DURATIONS = ("seconds", "engine_start_seconds")
WHOLE = Part(0, 1)
"""The only part of a run that is not divided."""


class OwnShards:
    """The shards of one part, as an iterator; collects the names of those of all parts."""

    def __init__(self, part: Part, shards: Iterator[InputShard]) -> None:
        """`shards` are those of the whole input."""
        self.names = set[str]()
        """Complete when the iterator has ended; empty for `WHOLE`."""
        self._own = shards if part is WHOLE else part.of(self._named(shards))

    def __iter__(self) -> "OwnShards":
        return self

    def __next__(self) -> InputShard:
        return next(self._own)

    def _named(self, shards: Iterator[InputShard]) -> Iterator[InputShard]:
        for shard in shards:
            self.names.add(shard.name)
            yield shard


def put_report(store: DatasetWriter, part: Part, summary: Mapping[str, Any], *, is_complete: bool) -> None:
    """Writes the report of a part, and run.json if all shards of all parts are there.

    In run.json, the sections "run", "cost" and "server" add up the last run of each part. Parts that end at the same
    time write it one after the other, each with the reports that are there.
    """
    has_worked = summary["run"]["images"] > 0
    if has_worked or not store.exists(part.report_name()):
        store.put_json(part.report_name(), {**summary, "part": part.name})
    if not is_complete or (store.exists(RUN) and not has_worked):
        return
    with store.alone():
        names = [Part(index, part.count).report_name() for index in range(part.count)]
        reports = [json_object(store, name) or {} for name in names]
        dataset = {key: value for key, value in asdict(totals(store)).items() if key in summary["dataset"]}
        run = _sums([run for report in reports if isinstance(run := report.get("run"), dict)])
        cost = _costs([cost for report in reports if isinstance(cost := report.get("cost"), dict)], run)
        store.put_json(RUN, {**summary, "run": run, "cost": cost, "dataset": dataset, **added_up(reports)})


def _costs(costs: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> dict[str, Any]:
    """The section "cost" of run.json: the GPUs and GPU hours of all parts, at the price that the last one knows."""
    gpu_hours = round(sum(cost["gpu_hours"] for cost in costs), 4)
    price = next((cost["gpu_hour_price"] for cost in reversed(costs) if cost["gpu_hour_price"] is not None), None)
    return {
        "gpus": sum(cost["gpus"] for cost in costs),
        "gpu_hours": gpu_hours,
        "gpu_hour_price": price,
        "per_million_images": None if price is None else cost_per_million(gpu_hours, price, run["images"]),
    }


def _sums(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The section "run" of run.json: counts are added up, durations are those of the longest part."""
    figures: dict[str, list[float]] = {}
    for key, value in (item for run in runs for item in run.items()):
        if isinstance(value, int | float):
            figures.setdefault(key, []).append(value)
    total = {key: max(values) if key in _DURATIONS else sum(values) for key, values in figures.items()}
    return {**total, "parts": len(runs)}
