"""Manifests: what a dataset of images is and where it comes from, as small TOML files."""

from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from dialog_gen.toml_files import find_toml, read_toml_model
from dialog_gen.world.scenes import Split

_STRICT = ConfigDict(frozen=True, extra="forbid")


class EmbeddedSource(BaseModel):
    """The world `shapes`, drawn on demand and served over loopback."""

    model_config = _STRICT

    kind: Literal["embedded"]


# Becomes a union that `kind` tells apart: tsv, webdataset, archives.
Source = EmbeddedSource


class Manifest(BaseModel):
    """A dataset that `dialog-gen download` can fetch."""

    model_config = _STRICT

    name: str
    """The file's stem where the file gives none."""
    description: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    """An SPDX identifier, or the terms in words."""
    source: Source
    rows: dict[str, PositiveInt] = Field(min_length=1)
    """Split -> images that are downloaded where no limit is given."""
    columns: tuple[str, ...]
    """What is stored beside each image."""

    @model_validator(mode="after")
    def _splits_are_drawn(self) -> "Manifest":
        drawn = get_args(Split)
        if unknown := [split for split in self.rows if split not in drawn]:
            raise ValueError(f"rows.{unknown[0]}: the embedded world has no such split, only {', '.join(drawn)}")
        return self


def shipped_manifests() -> dict[str, Path]:
    """Name -> file of the manifests that come with the package."""
    folder = Path(str(files("dialog_gen"))) / "data_manifests"
    if not folder.is_dir():
        # An editable install: only a wheel holds them inside the package.
        folder = Path(__file__).parents[2] / "data_manifests"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_manifest(name_or_file: str) -> Manifest:
    """A shipped manifest by name, or a user's by the path of its TOML file.

    Raises UsageError for an unknown name, an unreadable file or contents that are no manifest.
    """
    return read_toml_model(find_toml(name_or_file, shipped_manifests(), "manifest"), Manifest, "manifest")
