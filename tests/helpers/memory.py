"""Peak memory of this process, and of scripts in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEASURABLE = _STATUS.exists()


def peak_rss() -> int:
    """Bytes since this program began, or since `reset_peak_rss`.

    Not `ru_maxrss`: a program that is started by a large process, such as one of tests, takes over that one's peak.
    """
    return _status("VmHWM")


def rss() -> int:
    """Bytes now."""
    return _status("VmRSS")


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def reset_peak_rss() -> None:
    _CLEAR.write_text("5")


def run_script(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own, where `from helpers.memory import peak_rss` works."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
