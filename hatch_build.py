"""Makes the description of the wheel from README.md, for the page of a package index.

Relative links and pictures would break there. If `[project.urls]` names a `Repository`, they become absolute; otherwise
a link becomes its text, and pictures are left out.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)]+)\)")


def index_page(readme: str, repository: str | None) -> str:
    """README.md as an index page can show it; `repository` is an address such as https://HOST/USER/NAME."""

    def changed(found: re.Match[str]) -> str:
        picture, text, path = found.groups()
        if repository is not None:
            kind = "raw" if picture else "blob"
            return f"{picture}[{text}]({repository.rstrip('/')}/{kind}/HEAD/{path})"
        return "" if picture else text

    # Two empty lines stand where a picture was left out.
    return re.sub(r"\n{3,}", "\n\n", _LINK.sub(changed, readme))


class IndexPage(MetadataHookInterface):
    """Sets the field `readme`, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the table [project]."""
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = index_page(readme, metadata.get("urls", {}).get("Repository"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
