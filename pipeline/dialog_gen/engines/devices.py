"""The GPUs that this process may use, found without loading CUDA, and their division among engines."""

import os
import re
from pathlib import Path

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of

VARIABLE = "CUDA_VISIBLE_DEVICES"
_DEVICES = Path("/dev")


def visible_gpus() -> list[str]:
    """The GPUs by index or UUID, as in CUDA_VISIBLE_DEVICES if it is set; otherwise all that the driver offers."""
    named = os.environ.get(VARIABLE)
    if named is None:
        count = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in _DEVICES.glob("nvidia*"))
        return [str(number) for number in range(count)]
    found = list[str]()
    for name in named.split(","):
        # CUDA ignores whatever comes after a wrong name.
        if not name.strip() or name.strip() == "-1":
            break
        found.append(name.strip())
    return found


def shares(engines: int | None, gpus_per_engine: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES of each engine; None leaves it as it is. By default, there are as many as the GPUs allow.

    Without a GPU there is one engine, or the given number. Raises UsageError if there are too few GPUs.
    """
    gpus = visible_gpus()
    if engines is None:
        engines = max(1, len(gpus) // gpus_per_engine)
    if engines == 1 or not gpus:
        return [None] * engines
    if engines * gpus_per_engine > len(gpus):
        each = f" of {gpus_per_engine} GPUs each (--tensor-parallel-size)" if gpus_per_engine > 1 else ""
        raise UsageError(
            f"--engines {engines}{each} is too many: this machine shows {count_of(len(gpus), 'GPU')} "
            f"({', '.join(gpus)})."
        )
    return [",".join(gpus[k * gpus_per_engine : (k + 1) * gpus_per_engine]) for k in range(engines)]
