"""The code that a page of the documentation shows."""

import re
import tomllib
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
_TITLED = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)


def files_shown(page: str) -> dict[str, str]:
    """File name -> content: the blocks of code that have a title."""
    found = _TITLED.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(dict(found)) == len(found)
    return dict(found)


def install_shown(page: str, folder: Path) -> Path:
    """The package that a page shows, as if it were installed in `folder`, with the page's other files beside it."""
    files = files_shown(page)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return folder
