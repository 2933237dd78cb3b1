"""Tries a chat template in a process with bounded time and memory, before this process compiles it.

A template that writes the time of day or something random would make other prompts when a run is repeated.

A template is a program, and jinja2's sandbox bounds neither: `{{ 'a' * 10**10 }}` takes all memory already when it is
compiled, and nested loops never end.
"""

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from dialog_gen.core.errors import UsageError
from dialog_gen.models.template_process import CHARACTERS, CPU_S, MEMORY_BYTES, TOO_COSTLY, UNSTEADY
from dialog_gen.models.templates import OWN_TEMPLATES, contents
from dialog_gen.protocols.protocol import conversation

_SCRIPT = "from dialog_gen.models.template_process import main; main()"
_TURNS = (1, 16)
_WAIT_S = 300
"""Also on a machine where the process hardly gets any time."""


@lru_cache(maxsize=64)
def try_template(where: Path, template: str, variables: tuple[tuple[str, str], ...]) -> None:
    """Raises UsageError if a dialogue cannot be rendered within seconds and a small part of the memory.

    Also if it would not be rendered alike at another time of the same day. The date is part of released templates.
    `where` is the folder of the template, `variables` are those of `render_chat`. A template that fails passes.
    """
    if template in OWN_TEMPLATES:
        return
    conversations = [contents(conversation(*["a text"] * (2 * turns - 1))) for turns in _TURNS]
    asked = json.dumps({"template": template, "conversations": conversations, "variables": dict(variables)})
    try:
        done = subprocess.run(  # noqa: S603 - all arguments are our own
            [sys.executable, "-P", "-c", _SCRIPT],
            input=asked.encode(), capture_output=True, timeout=_WAIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _too_costly(where) from None
    # A signal ends it when its time is over, and the kernel may end it when the machine's memory is.
    if done.returncode == TOO_COSTLY or done.returncode < 0:
        raise _too_costly(where)
    if done.returncode == UNSTEADY:
        raise UsageError(
            f"the chat template of {where} writes the time of day or something random into the prompt, so that no run "
            "could be repeated: put the model's own template into the folder."
        )
    if done.returncode:
        problem = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UsageError(f"the chat template of {where} could not be tried in a process of its own: {problem}.")


def _too_costly(where: Path) -> UsageError:
    return UsageError(
        f"the chat template of {where} takes more than {CPU_S} seconds or {MEMORY_BYTES >> 20} MiB to render a "
        f"dialogue, or renders more than {CHARACTERS} characters: put the model's own template into the folder."
    )
