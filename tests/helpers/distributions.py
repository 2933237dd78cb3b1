"""Packages that are installed as far as Python can tell: modules, and entry points in a .dist-info."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import dialog_gen


def write_distribution(
    site: Path, name: str, modules: Mapping[str, str], points: Mapping[str, Mapping[str, str]]
) -> Path:
    """Writes a distribution into `site`: module -> source, group -> entry point -> what it names; returns `site`."""
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    for module, source in modules.items():
        (site / f"{module}.py").write_text(source, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    groups = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items()) for group, of in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def python_with(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, where that distribution is installed beside this package."""
    paths = [str(site), str(Path(dialog_gen.__file__).parents[1])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
