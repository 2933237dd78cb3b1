"""The origin of a dataset's images: the manifest of their download, and its link rot.

A download writes both next to the images. A published dataset has them in `images.json`, without the local path of the
images.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, FiniteFloat

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_json
from dialog_gen.core.plain_problems import first_problem
from dialog_gen.core.sealed_json import sealed, unsealed
from dialog_gen.dataset.folder import Count, DatasetFolder
from dialog_gen.download.manifests import Manifest

NAME = "images.json"
MANIFEST, LINK_ROT = "manifest.json", "link_rot.json"
"""Files that `dialog-gen download` writes next to the folder of images."""


class LinkRotRecord(BaseModel):
    """The fields of link_rot.json that are published; `dialog_gen.download.link_rot.LinkRot` writes that file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    urls: Count
    success_rate: FiniteFloat
    alive: FiniteFloat
    opted_out: Count
    outcomes: dict[str, Count]


class ImageProvenance(BaseModel):
    """The content of `images.json`. Fields are None if they are not known."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    manifest: str | None = None
    description: str | None = None
    homepage: str | None = None
    licence: str | None = None
    link_rot: LinkRotRecord | None = None


def note_manifest(out: Path, manifest: Manifest) -> None:
    """Writes the name, description, homepage and licence of a manifest to `out`/manifest.json.

    The name alone is not enough, because it may mean another manifest later.
    """
    about = manifest.model_dump(mode="json", include={"description", "homepage", "licence"})
    write_json(out / MANIFEST, sealed({"manifest": manifest.name, **about}))


def image_provenance(folder: DatasetFolder, link_rot: Path | None = None) -> ImageProvenance:
    """Reads the origin of a dataset's images from its images.json or, without one, from the folder of the download.

    `link_rot` is a link_rot.json to use instead. Raises UsageError if a file is damaged or `link_rot` does not exist.
    """
    found = _shared(folder)
    if found is None:
        download = _download_folder(str(folder.config().get("images", "")))
        found = ImageProvenance() if download is None else _downloaded(download)
    if link_rot is None:
        return found
    if not link_rot.is_file():
        raise UsageError(f"--link-rot {link_rot}: no such file. `dialog-gen download` writes OUT/link_rot.json.")
    return found.model_copy(update={"link_rot": _link_rot(link_rot)})


def _download_folder(images: str) -> Path | None:
    """The folder of the download, if it is local. `images` is that folder, its images/, or files in one of them."""
    if "://" in images:
        return None
    folders = [Path(images), *Path(images).parents[:2]]
    return next((at for at in folders for name in (MANIFEST, LINK_ROT) if (at / name).is_file()), None)


def _shared(folder: DatasetFolder) -> ImageProvenance | None:
    try:
        return ImageProvenance.model_validate(unsealed(folder.read(NAME)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(
            f"{folder.location}/{NAME} is damaged: {first_problem(error)}. Remove it, or pull again."
        ) from None


def _downloaded(folder: Path) -> ImageProvenance:
    try:
        found = ImageProvenance.model_validate(unsealed((folder / MANIFEST).read_bytes()))
    except FileNotFoundError:
        found = ImageProvenance()  # an older download
    except (ValueError, OSError):
        raise UsageError(f"{folder / MANIFEST} is damaged: the same `dialog-gen download` writes it again.") from None
    file = folder / LINK_ROT
    return found.model_copy(update={"link_rot": _link_rot(file) if file.is_file() else None})


def _link_rot(file: Path) -> LinkRotRecord:
    try:
        return LinkRotRecord.model_validate(unsealed(file.read_bytes()))
    except (ValueError, OSError) as error:
        raise UsageError(f"{file} is no link_rot.json of `dialog-gen download`: {first_problem(error)}.") from None
