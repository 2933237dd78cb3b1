"""Reads published caption files for retrieval, whatever their form.

Besides COCO's and Karpathy's JSON files (`dialog_eval.data.coco`; Karpathy's dataset_flickr30k.json is the usual
1,000-image test split of Flickr30k):

- Flickr30k (Young et al., 2014): results_20130124.token, with lines of IMAGE#NUMBER, a tab and a caption; or
  results.csv, with lines of IMAGE| NUMBER| CAPTION after one line of names.
- Lists of {image, caption: [...]}, such as flickr30k_test.json and coco_karpathy_test.json of BLIP
  (github.com/salesforce/BLIP).
- DOCCI (arXiv 2404.19753): docci_descriptions.jsonlines, with lines of {image_file, description, split}; splits train,
  test, qual_dev and qual_test.
- Urban1k (arXiv 2403.15378): a folder with caption/N.txt for image/N.jpg; the first line is the caption, as in
  eval/retrieval/Urban1k.py of github.com/beichenzbc/Long-CLIP.
- DCI (arXiv 2312.08578): a folder with annotations/*.json and splits.json; a caption is short_caption and
  extra_caption, with a line break between them, as `get_extended_caption` of github.com/facebookresearch/DCI has it.
  Without a split, all of its images are used, as is usual for retrieval of long texts.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, RootModel
from typing_extensions import TypedDict  # pydantic takes typing's only from Python 3.12 on

from dialog_eval.data.classes import lines_of
from dialog_eval.data.coco import DEFAULT_SPLIT, Captions, load_captions
from dialog_eval.data.records import read_records
from dialog_eval.results import read_json_file
from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import open_regular

_Pair = tuple[str, str]
"""File name of an image and a caption of it"""


class _Listed(TypedDict):
    image: str
    caption: str | list[str]


class _Described(TypedDict):
    image_file: str
    description: str
    split: str


class _Dense(BaseModel):
    image: str
    short_caption: str
    extra_caption: str = ""


class _Splits(RootModel[dict[str, list[str]]]):
    pass


def read_captions(path: Path, split: str | None = None) -> Captions:
    """Reads captions from a file or folder of any of the forms above.

    `split`: for a file with several; None means "test", for DCI all images. Raises UsageError as `load_captions` does,
    for a form that is not known, and for a split of a file that has none.
    """
    if path.is_dir():
        if (path / "splits.json").is_file() or _has(path, ".json") or (path / "annotations").is_dir():
            return _dense(path, split)
        folder = path / "caption" if (path / "caption").is_dir() else path
        if not _has(folder, ".txt"):
            raise UsageError(f"{path} has no captions: neither the .txt files of Urban1k nor the .json files of DCI.")
        return _of_pairs(path, _first_lines(folder), split)
    suffix = path.suffix.lower()
    if suffix == ".token":
        return _of_pairs(path, _tokens(path), split)
    if suffix == ".csv":
        return _of_pairs(path, _columns(path), split)
    if suffix in (".jsonl", ".jsonlines"):
        return _descriptions(path, split or DEFAULT_SPLIT)
    if _is_list(path):
        records = read_records(path, _Listed, "captions")
        pairs = ((one["image"], text) for one in records for text in _several(one["caption"]))
        return _of_pairs(path, pairs, split)
    return load_captions(path, split)


def _of_pairs(path: Path, pairs: Iterable[_Pair], split: str | None) -> Captions:
    if split is not None:
        raise UsageError(f"--split {split}: {path} has no splits; leave it out.")
    return _captions(path, pairs)


def _captions(path: Path, pairs: Iterable[_Pair], split: str | None = None) -> Captions:
    """Numbers the images in order of first appearance."""
    by_name = defaultdict[str, list[str]](list)
    for name, caption in pairs:
        if not name or not caption.strip():
            raise UsageError(f"{path}: image {name!r} has an empty caption.")
        by_name[name].append(caption.strip())
    if not by_name:
        raise UsageError(f"{path} holds no captions.")
    return Captions(captions=dict(enumerate(by_name.values())), file_names=dict(enumerate(by_name)), split=split)


def _tokens(path: Path) -> Iterator[_Pair]:
    for line in lines_of(path, "caption"):
        name, tab, caption = line.partition("\t")
        if not tab or "#" not in name:
            raise UsageError(
                f"{path} is not a file of Flickr30k's captions: the line {line[:60]!r} is not IMAGE#N, tab, text."
            )
        yield name.rpartition("#")[0], caption


def _columns(path: Path) -> Iterator[_Pair]:
    lines = lines_of(path, "caption")
    for line in lines[_begins_with_names(lines[0]) :]:
        name, _, rest = line.partition("|")
        # One line of the published file lacks the second mark.
        _, mark, caption = rest.partition("|") if "|" in rest else rest.strip().partition(" ")
        if not mark:
            raise UsageError(
                f"{path} is not a file of Flickr30k's captions: the line {line[:60]!r} is not IMAGE| N| text."
            )
        yield name.strip(), caption


def _begins_with_names(line: str) -> bool:
    """Whether the first line has the columns' names: no number is in its second column."""
    return not line.partition("|")[2].strip()[:1].isdecimal()


def _descriptions(path: Path, split: str) -> Captions:
    records = read_records(path, _Described, "DOCCI's captions")
    _check_split(path, split, {one["split"]: None for one in records})
    pairs = ((one["image_file"], one["description"]) for one in records if one["split"] == split)
    return _captions(path, pairs, split)


def _first_lines(folder: Path) -> Iterator[_Pair]:
    # Names that begin with a dot are no captions: archives made on macOS have such a "._1.txt" beside each file.
    files = (file for file in folder.glob("*.txt") if not file.name.startswith("."))
    for file in sorted(files, key=lambda file: (len(file.stem), file.stem)):
        yield f"{file.stem}.jpg", lines_of(file, "caption")[0]


def _dense(path: Path, split: str | None) -> Captions:
    splits = path if (path / "splits.json").is_file() else path.parent
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    names = sorted(
        file.name for file in folder.glob("*.json") if file.name != "splits.json" and not file.name.startswith(".")
    )
    if split is not None:
        parts = read_json_file(splits / "splits.json", _Splits, "is not DCI's list of splits").root
        _check_split(splits / "splits.json", split, parts)
        if unknown := [name for name in parts[split] if name not in names]:
            raise UsageError(f"{splits / 'splits.json'}: split {split} has {unknown[0]!r}, which is not in {folder}.")
        names = list(dict.fromkeys(parts[split]))
    read = (read_json_file(folder / name, _Dense, "is not a file of DCI") for name in names)
    pairs = ((one.image, f"{one.short_caption.strip()}\n{one.extra_caption.strip()}") for one in read)
    return _captions(path, pairs, split)


def _check_split(path: Path, split: str, known: Iterable[str]) -> None:
    if split not in (splits := list(known)):
        raise UsageError(f"--split {split}: {path} has no such split: {did_you_mean(split, splits)}.")


def _several(caption: str | list[str]) -> list[str]:
    """The captions; an empty one, which is refused, if the list is empty."""
    return [caption] if isinstance(caption, str) else caption or [""]


def _has(folder: Path, suffix: str) -> bool:
    return any(file.suffix.lower() == suffix for file in folder.iterdir())


def _is_list(path: Path) -> bool:
    """Whether a JSON file begins with a list. Files that cannot be read are left to the reader of COCO's files."""
    try:
        with open_regular(path) as file:
            return file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except OSError:
        return False


def digest_source(captions: Captions) -> bytes:
    """Bytes that differ for different captions, for the name of a folder's dataset."""
    return json.dumps([captions.file_names, captions.captions], sort_keys=True).encode()
