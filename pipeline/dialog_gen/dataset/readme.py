"""The README.md of a dataset folder, which tells `datasets` and the Hub's viewer which files are rows."""

from collections.abc import Collection
from typing import Any

README = "README.md"
CONFIGS = {"data": "default", "rejects": "rejects"}
"""Folder of Parquet files -> name of the configuration under which `datasets.load_dataset` finds them."""

_TEXT = """\
---
configs:
{configs}---

Question-answer dialogues about images, made with dialog-gen: one row per image.

```python
from datasets import load_dataset

rows = load_dataset("PATH_OF_THIS_FOLDER", split="train")
```

`dialog-gen status`, `stats` and `report` show what is in it, `verify` checks every byte, and `push` publishes it with a
full dataset card.
"""
_CONFIG = """\
- config_name: {name}
  data_files:
  - split: {split}
    path: {path}
"""


def readme_of(parts: Collection[str]) -> bytes:
    """The file for a dataset that has rows in these folders, of "data" and "rejects"."""
    configs = "".join(_CONFIG.format(name=one["config_name"], **one["data_files"][0]) for one in metadata_of(parts))
    return _TEXT.format(configs=configs).encode()


def described(content: bytes) -> frozenset[str] | None:
    """The folders that a README.md tells about; None if it is not of `readme_of`, but a card or somebody's own."""
    known = (frozenset(parts) for parts in (("data",), ("rejects",), ("data", "rejects")))
    return next((parts for parts in known if content == readme_of(parts)), None)


def metadata_of(parts: Collection[str]) -> list[dict[str, Any]]:
    """The same list of configurations, for the header of a dataset card."""
    return [
        {"config_name": name, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}
        for folder, name in CONFIGS.items()
        if folder in parts
    ]
