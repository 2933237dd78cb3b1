"""Where a dataset's images came from, as it is told to others: the manifest, and what became of its links.

A download leaves that beside the images. It is shared as `images.json`, since a path of this machine says nothing to
others.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.download.manifests import Manifest

NAME = "images.json"
MANIFEST, LINK_ROT = "manifest.json", "link_rot.json"
"""What `dialog-gen download` leaves beside the images."""


class LinkRot(BaseModel):
    """What link_rot.json says, see `dialog_gen.download.link_rot`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    urls: int
    success_rate: float
    alive: float
    opted_out: int
    outcomes: dict[str, int]


class ImageSource(BaseModel):
    """What `images.json` says; None where nobody knows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    manifest: str | None = None
    description: str | None = None
    homepage: str | None = None
    licence: str | None = None
    link_rot: LinkRot | None = None


def note_manifest(out: Path, manifest: Manifest) -> None:
    """Writes what a manifest says of its images beside them: its name alone may be another one's tomorrow."""
    about = manifest.model_dump(mode="json", include={"description", "homepage", "licence"})
    write_json(out / MANIFEST, {"manifest": manifest.name, **about})


def image_source(folder: DatasetFolder, link_rot: Path | None = None) -> ImageSource:
    """From what the dataset itself was shared with, else from beside the images that it was made of.

    `link_rot` is a file that takes the place of the one found. Raises UsageError where that, or what is found, is
    damaged.
    """
    found = _shared(folder)
    if found is None:
        beside = _beside(str(folder.config().get("images", "")))
        found = ImageSource() if beside is None else _downloaded(beside)
    if link_rot is None:
        return found
    if not link_rot.is_file():
        raise UsageError(f"--link-rot {link_rot}: no such file. `dialog-gen download` writes OUT/link_rot.json.")
    return found.model_copy(update={"link_rot": _link_rot(link_rot)})


def _beside(images: str) -> Path | None:
    """The folder of the download, if it is on this machine: `images` names it, its images/, or files in that."""
    if "://" in images:
        return None
    folders = [Path(images), *Path(images).parents[:2]]
    return next((at for at in folders for name in (MANIFEST, LINK_ROT) if (at / name).is_file()), None)


def _shared(folder: DatasetFolder) -> ImageSource | None:
    try:
        return ImageSource.model_validate_json(folder.read(NAME))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UsageError(f"{folder.location}/{NAME} is damaged: {_first(error)}. Remove it, or pull again.") from None


def _downloaded(folder: Path) -> ImageSource:
    try:
        found = ImageSource.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        found = ImageSource()  # an older download
    except (ValidationError, OSError):
        raise UsageError(f"{folder / MANIFEST} is damaged: the same `dialog-gen download` writes it anew.") from None
    file = folder / LINK_ROT
    return found.model_copy(update={"link_rot": _link_rot(file) if file.is_file() else None})


def _link_rot(file: Path) -> LinkRot:
    try:
        return LinkRot.model_validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        what = _first(error) if isinstance(error, ValidationError) else error
        raise UsageError(f"{file} is no link_rot.json of `dialog-gen download`: {what}.") from None


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}".removeprefix(": ")
