"""The process in which a chat template is tried: `{"template": ..., "messages": [...], "variables": {...}}` on stdin.

It imports little, so that it costs a tenth of a second. Its environment is that of transformers: what another one would
render does not matter here, only what it costs, and whether it would be the same at another time.
"""

import json
import os
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_S = 5
MEMORY_BYTES = 512 << 20
"""Beyond what the process has when it begins to render."""
CHARACTERS = 1 << 20
TOO_COSTLY = 3
"""The exit code of a process that ran out of memory, or rendered more characters."""
UNSTEADY = 4
"""The exit code of a process that rendered a conversation in two ways."""
_TIMES = (datetime(2026, 1, 2, 3, 4, 5, 67, UTC), datetime(2026, 1, 2, 13, 24, 35, 678901, UTC))
"""Two times of one day, which differ in every part."""


class _Generation(Extension):
    """`{% generation %}`: its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's name and type

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def main() -> None:
    """Renders each conversation. What fails counts as rendered: other checks say what is wrong."""
    asked = json.load(sys.stdin)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, int(sum(os.times()[:2])) + 1 + CPU_S)
    _limit(resource.RLIMIT_CORE, 0)
    template, variables = asked["template"], asked["variables"]
    try:
        for messages in asked["conversations"]:
            first, second = (_rendered(template, messages, variables, number) for number in range(2))
            if len(first) > CHARACTERS:
                os._exit(TOO_COSTLY)
            if first != second:
                os._exit(UNSTEADY)
    except MemoryError:
        os._exit(TOO_COSTLY)
    os._exit(0)


def _rendered(template: str, messages: list[Any], variables: dict[str, str], number: int) -> str:
    """The prompt at one of the two times; an empty text if the template fails. Raises MemoryError.

    What is random is another text each time.
    """

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    own: Any = {"raise_exception": refuse, "strftime_now": _TIMES[number].strftime}
    filters: Any = {"random": lambda values: [*values][-number]}  # the first, and the last
    environment.filters.update(filters)
    own["lipsum"] = lambda *_, **__: f"{number}"
    environment.globals.update(own)
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=messages, add_generation_prompt=True, **variables)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        return ""


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
