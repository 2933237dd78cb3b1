"""The gates that a run applies to each dialogue as soon as it is complete, with the engine that made it.

A shard that a run has scored looks as if a pass with just these gates had been applied to it. The pass over the dataset
(`apply`) adds the other gates, and takes these scores as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dialog_gen.core.errors import DialogGenError
from dialog_gen.core.hashing import sha256_json
from dialog_gen.gates.base import EngineGate, Gate, Limits, Row, Scores, SetGate
from dialog_gen.gates.settings import GateSettings, versions

if TYPE_CHECKING:
    from PIL import Image

    from dialog_gen.engines.base import Engine

Entries = list[list[dict[str, Any]]]
"""The column `gates` of one row: for each pair, the score and mark of every gate."""


@dataclass(frozen=True, slots=True)
class RunGates:
    """Gates that ask the engine of a run. Plain data, which can be sent to another process."""

    settings: GateSettings
    gates: Mapping[str, EngineGate[Any]]
    """Gate name -> gate, with the same keys as `settings`."""
    gates_sha256: str
    scores_sha256: Mapping[str, str]

    @classmethod
    def of(cls, gates: Mapping[str, EngineGate[Any]], settings: GateSettings) -> "RunGates":
        """These gates with their settings."""
        chosen = {name: settings[name] for name in gates}
        return cls(chosen, gates, pass_sha256(chosen), scores_sha256(gates))

    async def entries(self, engine: "Engine", images: "tuple[Image.Image, ...]", row: Row) -> Entries:
        """The column `gates` of an accepted row; `images` are its decoded images. Raises EngineDiedError."""
        scores = {name: await gate.ask(engine, images, row) for name, gate in self.gates.items()}
        return entries_of(row, scores, self.settings)


def entries_of(row: Row, scores: Mapping[str, Scores], settings: GateSettings) -> Entries:
    """For each pair of the row, the score and mark of every gate; gates whose score is None are included."""
    pairs = len(row["texts"])
    for name, of_row in scores.items():
        if len(of_row) != pairs:
            raise DialogGenError(f"gate {name!r} did not give one score for each pair: mend its package.")
    return [
        [
            {"gate": name, "score": of_row[place], "marked": settings[name].is_violated(of_row[place])}
            for name, of_row in scores.items()
        ]
        for place in range(pairs)
    ]


def pass_sha256(settings: GateSettings, of_the_set: Mapping[str, str] | None = None) -> str:
    """A hash of everything that the column `gates` depends on after a pass, except the rows themselves.

    `of_the_set`: gate name -> what `SetGate.settle` returned.
    """
    return sha256_json(
        {
            "settings": {name: limits.model_dump(exclude_none=True) for name, limits in settings.items()},
            "versions": versions(settings),
            "of_the_set": dict(of_the_set or {}),
        }
    )


def scores_sha256(gates: Mapping[str, Gate[Any]]) -> dict[str, str]:
    """Gate name -> a hash of everything that its scores depend on except the rows, for gates that run a model.

    Other gates are cheap to apply again.
    """
    return {
        name: sha256_json({"settings": _without_limits(gate.settings), "versions": versions([name])})
        for name, gate in gates.items()
        if gate.needs_model and not isinstance(gate, SetGate)
    }


def _without_limits(settings: Limits) -> dict[str, Any]:
    return settings.model_dump(exclude={*Limits.model_fields}, exclude_none=True)
