"""The values of steps, kept on the device and read from it only when someone asks: reading waits for the device."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


class StepValues(Mapping[str, float]):
    """The values of one step by name; the first look at one of them reads all from the device, and waits for it."""

    def __init__(self, on_device: Mapping[str, Tensor], known: Mapping[str, float]) -> None:
        """Scalars of one device, and values that are known without it."""
        self.names = tuple(on_device)
        # MPS has no float64.
        device = next(iter(on_device.values())).device
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.tensor = torch.stack([value.detach() for value in on_device.values()]).to(precise)
        self.known = dict(known)
        self._read: dict[str, float] | None = None

    def _values(self) -> dict[str, float]:
        if self._read is None:
            self._read = dict(zip(self.names, self.tensor.tolist(), strict=True)) | self.known
        return self._read

    def __getitem__(self, name: str) -> float:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.names, *self.known])

    def __len__(self) -> int:
        return len(self.names) + len(self.known)


@dataclass(slots=True)
class Sums:
    """Sums of the values of several steps."""

    steps: int = 0
    _on_device: dict[tuple[str, ...], Tensor] = field(default_factory=dict[tuple[str, ...], Tensor])
    _known: dict[str, float | Tensor] = field(default_factory=dict[str, float | Tensor])

    def add(self, values: StepValues, statistics: Mapping[str, float | Tensor]) -> None:
        """Adds the values of a step and the statistics of its batch; reads nothing from the device."""
        self.steps += 1
        before = self._on_device.get(values.names)
        self._on_device[values.names] = values.tensor if before is None else before + values.tensor
        for name, value in {**values.known, **statistics}.items():
            self._known[name] = self._known.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The means over the steps; waits for the device."""
        sums = {name: float(value) for name, value in self._known.items()}
        for names, values in self._on_device.items():
            for name, value in zip(names, values.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
        return {name: total / self.steps for name, total in sums.items()}


class NotFiniteError(FloatingPointError):
    """A value of a step is not finite."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class FiniteGuard:
    """Notes on the device the first step that has a value which is not finite, and that it must not be applied."""

    def __init__(self, device: torch.device) -> None:
        self.found_inf = torch.zeros((), device=device)
        """1 from the first such step on, before that 0, as fused optimizers take it: they then change nothing."""
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        # By names, because steps may have different values; all are finite but those of the first such step.
        self._first = dict[tuple[str, ...], Tensor]()

    def check(self, step: int, values: StepValues) -> None:
        """Looks at the values of step `step`, counted from 0; reads nothing from the device."""
        bad = ~values.tensor.isfinite().all()
        new = bad & (self.found_inf == 0)
        self._step.masked_fill_(new, step)
        before = self._first.get(values.names)
        self._first[values.names] = torch.where(new, values.tensor, 0.0 if before is None else before)
        torch.maximum(self.found_inf, bad.to(self.found_inf.dtype), out=self.found_inf)

    def require_finite(self) -> None:
        """Raises NotFiniteError if a step had a value that is not finite; waits for the device."""
        step = int(self._step)
        if step < 0:
            return
        found = [pair for names, values in self._first.items() for pair in zip(names, values.tolist(), strict=True)]
        wrong = [f"{name} is {value}" for name, value in found if not math.isfinite(value)]
        raise NotFiniteError(step, ", ".join(wrong))
