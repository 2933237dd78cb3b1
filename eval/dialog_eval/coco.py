"""COCO's captions files, and the list of images in any COCO file (cocodataset.org/#format-data)."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_gen.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """The content of a captions file."""

    captions: dict[int, list[str]]
    """Image id -> its captions in the file's order; the images in order of the list, or of their first caption"""
    file_names: dict[int, str] | None
    """Image id -> file name; None where the file has no list of images"""


class _Image(TypedDict):
    id: int
    file_name: str


class _Annotation(TypedDict):
    image_id: int
    caption: str


class _Images(BaseModel):
    images: list[_Image]


class _Captions(BaseModel):
    images: list[_Image] | None = None
    annotations: list[_Annotation]


_Layout = TypeVar("_Layout", _Images, _Captions)


def load_captions(path: Path) -> Captions:
    """Reads a captions file.

    Raises UsageError for a file that cannot be read or is no such file, no captions, an image without captions, and a
    caption of an image that is not listed.
    """
    content = _read(path, _Captions, "captions file")
    if not content.annotations:
        raise UsageError(f"{path} holds no captions.")
    by_image = defaultdict[int, list[str]](list)
    for annotation in content.annotations:
        by_image[annotation["image_id"]].append(annotation["caption"])
    if content.images is None:
        return Captions(captions=dict(by_image), file_names=None)
    file_names = _file_names(path, content.images)
    if without := [image_id for image_id in file_names if image_id not in by_image]:
        raise UsageError(f"{path}: {len(without)} images have no caption, such as image {without[0]}.")
    if unlisted := [image_id for image_id in by_image if image_id not in file_names]:
        raise UsageError(f"{path}: {len(unlisted)} images with captions are not in its images, such as {unlisted[0]}.")
    return Captions(captions={image_id: by_image[image_id] for image_id in file_names}, file_names=file_names)


def load_file_names(path: Path) -> dict[int, str]:
    """Image id -> file name, of any COCO file that lists its images. Raises UsageError for another file."""
    return _file_names(path, _read(path, _Images, "file with a list of images").images)


def _file_names(path: Path, images: list[_Image]) -> dict[int, str]:
    names: dict[int, str] = {}
    for image in images:
        if names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
            raise UsageError(f"{path} lists image {image['id']} twice, under different names.")
    return names


def _read(path: Path, layout: type[_Layout], what: str) -> _Layout:
    try:
        return layout.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UsageError(f"{path} is no COCO {what}: {where}: {first['msg']}.") from None
