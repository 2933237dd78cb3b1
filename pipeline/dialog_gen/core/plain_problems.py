"""What pydantic finds wrong with a value, in plain words."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

_MUST_BE: Mapping[str, str] = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
}
"""Kind of a problem -> what the value must be; in braces, what pydantic knows of the limits."""


def plain_problem(problem: Mapping[str, Any]) -> str:
    """What is wrong, such as "must be at least 1"; `problem` is one of `ValidationError.errors()`.

    Problems that have no words here keep pydantic's.
    """
    if (wanted := _MUST_BE.get(problem["type"])) is not None:
        limits = {key: _number(value) for key, value in problem.get("ctx", {}).items()}
        return f"must be {wanted.format_map(limits)}"
    return re.sub("^Value error, ", "", problem["msg"]).removesuffix(".")


def first_problem(error: Exception) -> str:
    """The message of `error`; for a ValidationError, its first problem and where it is."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {plain_problem(problem)}".removeprefix(": ")


def _number(value: object) -> str:
    """Without the ".0" of a whole number, and with the digits of a small one."""
    return f"{value:g}" if isinstance(value, float) else str(value)
