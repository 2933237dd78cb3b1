"""How optional dependencies are installed, depending on how this distribution was."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from urllib.parse import unquote, urlsplit

_NAME = "dialog-gen"


def install_command(extra: str) -> str:
    """The pip command that adds an extra: to a checkout, to a wheel, or to what a package index offers.

    Where the package came from is what pip recorded (PEP 610); a package from an index has no such record.
    """
    try:
        recorded = distribution(_NAME).read_text("direct_url.json")
        origin = json.loads(recorded or "{}")
    except (PackageNotFoundError, ValueError):
        origin = None
    if not isinstance(origin, dict):
        origin = {}
    url = str(origin.get("url", ""))
    if "dir_info" in origin and url.startswith("file:"):
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{unquote(urlsplit(url).path)}[{extra}]')}"
    return f"pip install {shlex.quote(f'{_NAME}[{extra}] @ {url}' if url else f'{_NAME}[{extra}]')}"
