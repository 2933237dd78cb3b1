"""Images on a terminal: as graphics where it is known to show them, else as two coloured blocks a character cell.

What is written is made from decoded pixels only: no byte of an image file reaches the terminal.
"""

import base64
from collections.abc import Iterator, Mapping
from enum import Enum
from io import BytesIO
from itertools import pairwise
from typing import Any

# The pixels of a character cell, about; terminals scale graphics to the cells that are asked for.
_CELL = (10, 20)
_CHUNK = 4096
_RESET = "\x1b[0m"
_CUBE = (0, 95, 135, 175, 215, 255)
"""The levels of each primary in the 216 colours that a terminal of 256 has."""


class Way(Enum):
    """How a terminal shows an image."""

    KITTY = "the graphics protocol of kitty, which Ghostty and WezTerm have, too"
    ITERM = "the inline images of iTerm2"
    TRUE_COLOUR = "half blocks in 24-bit colours"
    COLOURS_256 = "half blocks in 256 colours"


def way_of(environment: Mapping[str, str]) -> Way | None:
    """How the terminal that these variables describe shows an image; None if it does not."""
    terminal, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if terminal in ("", "dumb") or environment.get("NO_COLOR"):
        return None
    # Multiplexers pass on text and colours only.
    if not environment.get("TMUX") and not terminal.startswith(("tmux", "screen")):
        if environment.get("KITTY_WINDOW_ID") or "kitty" in terminal or program in ("ghostty", "WezTerm"):
            return Way.KITTY
        if "iTerm" in program or environment.get("LC_TERMINAL") == "iTerm2":
            return Way.ITERM
    return Way.TRUE_COLOUR if environment.get("COLORTERM") in ("truecolor", "24bit") else Way.COLOURS_256


def drawn(image: Any, way: Way, *, columns: int, lines: int) -> str:
    """The characters that show an RGB image of Pillow in at most so many columns and lines, with a final line feed."""
    width, height = image.size
    # In half lines, which are about as high as a column is wide.
    scale = min(columns / width, 2 * lines / height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    if way in (Way.KITTY, Way.ITERM):
        cells = (wide, -(-high // 2))
        return (_kitty if way is Way.KITTY else _iterm)(_png(image, cells), *cells)
    pixels = image.resize((wide, high + high % 2)).load()
    colour = _true_colour if way is Way.TRUE_COLOUR else _of_256
    rows = (
        "".join(f"\x1b[38;{colour(pixels[x, y])};48;{colour(pixels[x, y + 1])}m▀" for x in range(wide))
        for y in range(0, high, 2)
    )
    return "".join(f"{row}{_RESET}\n" for row in rows)


def _true_colour(pixel: tuple[int, int, int]) -> str:
    return "2;{};{};{}".format(*pixel)


def _of_256(pixel: tuple[int, int, int]) -> str:
    red, green, blue = (min(range(len(_CUBE)), key=lambda level: abs(_CUBE[level] - value)) for value in pixel)
    return f"5;{16 + 36 * red + 6 * green + blue}"


def _png(image: Any, cells: tuple[int, int]) -> str:
    smaller = image.copy()
    smaller.thumbnail((cells[0] * _CELL[0], cells[1] * _CELL[1]))
    buffer = BytesIO()
    smaller.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _kitty(png: str, columns: int, lines: int) -> str:
    # q=2: the terminal must not answer, because nobody would read it.
    control = f"a=T,f=100,q=2,c={columns},r={lines},"
    parts = list(_chunks(png))
    keys = [control, *[""] * (len(parts) - 1)]
    escapes = (
        f"\x1b_G{key}m={int(number < len(parts))};{part}\x1b\\"
        for number, (key, part) in enumerate(zip(keys, parts, strict=True), 1)
    )
    return "".join(escapes) + "\n"


def _iterm(png: str, columns: int, lines: int) -> str:
    return f"\x1b]1337;File=inline=1;width={columns};height={lines};preserveAspectRatio=1:{png}\x07\n"


def _chunks(text: str) -> Iterator[str]:
    ends = [*range(0, len(text), _CHUNK), len(text)]
    return (text[start:end] for start, end in pairwise(ends))
