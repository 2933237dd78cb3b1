"""Reads published caption files, and the list of images in any COCO file.

Two layouts are recognised by their content: COCO's own captions files (cocodataset.org/#format-data), and the files of
Karpathy's splits (cs.stanford.edu/people/karpathy/deepimagesent), such as dataset_coco.json, which contain all splits.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.results import read_json_file
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.plural import count_of

DEFAULT_SPLIT = "test"
# By convention "train" includes "restval": 82,783 and 30,504 images, the latter the rest of COCO's validation images.
_MERGED_SPLITS = {"train": ("train", "restval")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """The content of a captions file, or of one split of it."""

    captions: dict[int, list[str]]
    """Image id -> its captions in the file's order; images are in the order of the list, or of their first caption"""
    file_names: dict[int, str] | None
    """Image id -> file name; None if the file has no list of images"""
    split: str | None = None
    """Name of the split, if the file contains several"""


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


class _Sentence(TypedDict):
    raw: str


class _SplitImage(TypedDict):
    imgid: int
    cocoid: NotRequired[int]
    filepath: NotRequired[str]
    filename: str
    split: str
    sentences: list[_Sentence]


class _Splits(BaseModel):
    dataset: str
    images: list[_SplitImage]


class _Kind(BaseModel):
    dataset: str | None = None


def load_captions(path: Path, split: str | None = None) -> Captions:
    """Reads a captions file.

    `split` selects a split of one of Karpathy's files; None means "test", and "train" includes "restval". The images in
    such a file have COCO's ids or, for other datasets, the values of `imgid`.

    Raises UsageError for a file that cannot be read, has another layout or has no captions; an image without captions,
    with an empty one or listed twice; a caption of an image that is not listed; a split that the file does not contain;
    and any split for a file that has only one.
    """
    if read_json_file(path, _Kind, "is not a captions file").dataset is not None:
        return _of_split(path, split or DEFAULT_SPLIT)
    if split is not None:
        raise UsageError(f"--split {split}: {path} is a COCO captions file, of one split; leave it out.")
    content = read_json_file(path, _Captions, "is not a COCO captions file")
    if not content.annotations:
        raise UsageError(f"{path} holds no captions.")
    by_image = defaultdict[int, list[str]](list)
    for annotation in content.annotations:
        _check_caption(path, annotation["image_id"], annotation["caption"])
        by_image[annotation["image_id"]].append(annotation["caption"])
    if content.images is None:
        return Captions(captions=dict(by_image), file_names=None)
    file_names = _file_names(path, content.images)
    if without := [image_id for image_id in file_names if image_id not in by_image]:
        raise UsageError(
            f"{path}: there is no caption of {count_of(len(without), 'image')}, such as image {without[0]}."
        )
    if unlisted := [image_id for image_id in by_image if image_id not in file_names]:
        raise UsageError(
            f"{path}: its list of images lacks {count_of(len(unlisted), 'image')} with captions, such as {unlisted[0]}."
        )
    return Captions(captions={image_id: by_image[image_id] for image_id in file_names}, file_names=file_names)


def load_file_names(path: Path) -> dict[int, str]:
    """Reads image id -> file name from any COCO file that lists its images. Raises UsageError for another file."""
    return _file_names(path, read_json_file(path, _Images, "is not a COCO file with a list of images").images)


def _of_split(path: Path, split: str) -> Captions:
    content = read_json_file(path, _Splits, "is not a file of Karpathy's splits")
    held = Counter(image["split"] for image in content.images)
    if split not in held:
        raise UsageError(f"--split {split}: {path} has no such split: {did_you_mean(split, held)}.")
    captions: dict[int, list[str]] = {}
    file_names: dict[int, str] = {}
    for image in content.images:
        if image["split"] not in _MERGED_SPLITS.get(split, (split,)):
            continue
        image_id = image.get("cocoid", image["imgid"])
        if image_id in captions:
            raise UsageError(f"{path} lists image {image_id} twice.")
        if not image["sentences"]:
            raise UsageError(f"{path}: image {image_id} has no sentences.")
        captions[image_id] = [sentence["raw"] for sentence in image["sentences"]]
        for caption in captions[image_id]:
            _check_caption(path, image_id, caption)
        folder = image.get("filepath")
        file_names[image_id] = f"{folder}/{image['filename']}" if folder else image["filename"]
    return Captions(captions=captions, file_names=file_names, split=split)


def _check_caption(path: Path, image_id: int, caption: str) -> None:
    if not caption.strip():
        raise UsageError(f"{path}: image {image_id} has an empty caption.")


def _file_names(path: Path, images: list[_Image]) -> dict[int, str]:
    names: dict[int, str] = {}
    for image in images:
        if names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
            raise UsageError(f"{path} lists image {image['id']} twice, under different names.")
    return names
