"""Reads JSON from outside: whatever is wrong with it is a ValueError with a message of one line."""

import json
import math
from typing import Any, NoReturn


def parse_json(data: bytes | str, *, finite: bool = True) -> Any:
    """The value of a JSON text; bytes are UTF-8, UTF-16 or UTF-32.

    With `finite`, NaN, Infinity and numbers too large for a float are refused; they are no JSON, but many programs
    write them. Raises ValueError for text that is not JSON, cannot be decoded, is nested too deeply, or contains an
    integer of more than 4,300 digits.
    """
    try:
        if finite:
            return json.loads(data, parse_constant=_refuse, parse_float=_finite)
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not a finite number")
