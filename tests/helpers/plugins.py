"""A package of somebody else, with entry points, and our command lines in a process that finds it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def write_plugin(folder: Path, modules: Mapping[str, str], entry_points: str) -> Path:
    """A distribution `a-plugin` in `folder`; `modules`: name -> source."""
    info = folder / "a_plugin-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    return folder


def dialog_gen_with(plugin: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`dialog-gen` with a plugin installed, run in the plugin's folder."""
    path = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", "from dialog_gen.cli.app import main; main()", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, cwd=plugin, capture_output=True, text=True)
