"""Listens to the progress of library functions."""

from dataclasses import dataclass, field


@dataclass
class Heard:
    """An `OnProgress` that keeps what it is told: stage -> (done, total), in order."""

    stages: dict[str, list[tuple[int, int | None]]] = field(default_factory=dict[str, list[tuple[int, int | None]]])

    def __call__(self, stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        self.stages.setdefault(stage, []).append((done, total))

    def ends(self) -> dict[str, tuple[int, int | None]]:
        """What each stage said last; before that it went up and never changed its total."""
        for steps in self.stages.values():
            assert steps == sorted(steps)
            assert len({total for _, total in steps}) == 1
        return {stage: steps[-1] for stage, steps in self.stages.items()}
