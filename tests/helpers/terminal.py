"""Commands on a terminal of their own."""

import os
import pty
import subprocess
import sys
from pathlib import Path

EVIL = "\x1b]0;PLANT\x07\x1b[2J\x1b[31mred\r\x9b2J\u202ePLANT\x7f"
"""Sets a title, clears the screen, colours, overwrites the line, turns the text around."""
_RAW = ("\x1b]", "\x1b[2J", "\x1b[31mred", "\x07", "\r\x9b", "\x9b", "\u202e", "\x7f", "red\r\\")


def on_terminal(cwd: Path, *arguments: str | bytes, **environment: str) -> tuple[int, str]:
    """The exit code of `python -m ARGUMENTS...`, and all bytes that reached its terminal."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", *arguments]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "1000", **environment}
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=side, stderr=side, env=env) as process:
        os.close(side)
        chunks = list[bytes]()
        while True:
            try:
                chunk = os.read(main, 1 << 16)
            except OSError:  # how Linux says that the other side is closed
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(main)
    return process.returncode, b"".join(chunks).decode("utf-8", "surrogateescape")


def raw_controls(text: str) -> list[str]:
    """What of EVIL the terminal obeyed."""
    return [control for control in _RAW if control in text]
