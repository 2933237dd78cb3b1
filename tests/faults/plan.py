"""Which faults a scenario meets."""

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from faults.shim import KINDS, MODES_OF, Point

if TYPE_CHECKING:
    from faults.trial import Stage

_FLIPS = 0.25
"""Part of the faults in which a bit flips."""


@dataclass(frozen=True)
class Flip:
    """One bit of one file: both are chosen by fractions of what is there at that time."""

    before: bool
    """In what the command reads, before it starts; else in what it made, after it ended."""
    file: float
    bit: float

    def apply(self, folders: list[Path]) -> str | None:
        """Flips the bit; returns its place in words, or None if the folders hold no byte."""
        found = sorted(
            file for folder in folders for file in folder.rglob("*") if file.is_file() and file.stat().st_size
        )
        if not found:
            return None
        file = found[int(self.file * len(found))]
        data = bytearray(file.read_bytes())
        place = int(self.bit * 8 * len(data))
        data[place // 8] ^= 1 << place % 8
        file.write_bytes(data)
        return f"bit {place} of {file.name} in {file.parent.name}"


@dataclass(frozen=True)
class Fault:
    """An operation that fails, a bit that flips, or one after the other."""

    point: Point | None = None
    flip: Flip | None = None

    def __str__(self) -> str:
        """What `of` takes."""
        words = [] if self.point is None else [str(self.point)]
        if self.flip:
            words.append(f"flip {'before' if self.flip.before else 'after'} {self.flip.file:.6f} {self.flip.bit:.6f}")
        return ", ".join(words)

    @classmethod
    def of(cls, text: str) -> "Fault":
        """The fault that is written so."""
        point = re.search(rf"({'|'.join(KINDS)}) (\d+) ([^,]+)", text)
        flip = re.search(r"flip (before|after) ([\d.]+) ([\d.]+)", text)
        return cls(
            Point(point[1], int(point[2]), point[3]) if point else None,
            Flip(flip[1] == "before", float(flip[2]), float(flip[3])) if flip else None,
        )


def plan(stage: "Stage", count: int, rng: random.Random) -> list[Fault]:
    """Draws faults: every kind of operation and every way to fail equally often, every place in the command."""
    scenario = stage.scenario
    kinds = [kind for kind in KINDS if stage.counts[kind]]
    ways = [(kind, mode) for kind in kinds for mode in MODES_OF[kind]]
    flips = (
        ["before"] * bool(scenario.sources)
        + ["after"] * (scenario.dataset is not None)
        + ["killed"] * bool(scenario.made)
    )
    faults: list[Fault] = []
    for _ in range(count):
        how = rng.choice(flips) if flips and rng.random() < _FLIPS else None
        flip = Flip(how == "before", rng.random(), rng.random()) if how else None
        point = None
        if how in (None, "killed"):
            kind, mode = rng.choice(ways)
            point = Point(kind, rng.randint(1, stage.counts[kind]), "killed after" if how else mode)
        faults.append(Fault(point, flip))
    return faults
