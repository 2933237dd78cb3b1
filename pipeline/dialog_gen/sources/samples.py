"""The samples of a tar: which members belong together, and which of them is the image.

The key of a member is its path up to the first dot in its name, as in webdataset; the rest is its ending. Of a key with
several images, the first is the one whose ending has no dot (`KEY.jpg` rather than `KEY.mask.png`), otherwise the
first in the tar. The others follow in the order of the tar, or are not used. Of several texts only the first is used.

If all members of a key with several images have a dot in their endings, the dot belongs to the names: `trip 2.0.jpg`
and `trip 2.1.jpg` with `trip 2.1.txt` are two samples, `trip 2.0` and `trip 2.1`.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from dialog_gen.sources.images import IMAGE_EXTENSIONS
from dialog_gen.sources.unused import Unused, UnusedReason

Kind = Literal["image", "txt", "json"]


class Member(NamedTuple):
    """A file in a tar: its name without folder, its ending, its size in bytes and the place of its first byte."""

    name: str
    ending: str
    size: int
    place: int


class Sample(NamedTuple):
    """An image with its texts, or several images."""

    key: str
    images: tuple[Member, ...]
    caption: Member | None
    metadata: Member | None


def kind_of(ending: str) -> Kind | None:
    """What a member with this ending is; None if it is no part of a sample."""
    extension = ending.rpartition(".")[2].lower()
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if extension == "txt":
        return "txt"
    return "json" if extension == "json" else None


def samples_of(
    key: str, members: Mapping[str, Member], is_plain: bool, *, all_images: bool = False
) -> Iterator[Sample | Unused]:
    """The samples of one key, and the members that are not used.

    `members`: ending -> member, in the order of the tar. `is_plain`: whether a member of another kind has an ending
    without a dot, such as `KEY.cls`. `all_images`: whether a sample has all images of its key, or only the first.
    """
    by_kind: dict[Kind, list[Member]] = {"image": [], "txt": [], "json": []}
    for ending, member in members.items():
        if kind := kind_of(ending):
            by_kind[kind].append(member)
    if len(by_kind["image"]) > 1 and not is_plain and all("." in ending for ending in members):
        yield from _split(key, members, all_images)
        return
    chosen = {kind: _first(of_kind) for kind, of_kind in by_kind.items()}
    image = chosen["image"]
    for kind, of_kind in by_kind.items():
        for member in of_kind:
            is_used = member is chosen[kind] or (kind == "image" and all_images)
            if image is None or not is_used:
                reason: UnusedReason = "second_image" if kind == "image" else "other_file" if image else "no_image"
                yield Unused(f"{key}.{member.ending}", reason)
    if image is not None:
        more = (member for member in by_kind["image"] if all_images and member is not image)
        yield Sample(key, (image, *more), chosen["txt"], chosen["json"])


def _split(key: str, members: Mapping[str, Member], all_images: bool) -> Iterator[Sample | Unused]:
    groups = dict[str, dict[str, Member]]()
    for ending, member in members.items():
        name, _, extension = ending.rpartition(".")
        groups.setdefault(f"{key}.{name}", {})[extension] = member._replace(ending=extension)
    for group_key, group in groups.items():
        yield from samples_of(group_key, group, is_plain=True, all_images=all_images)


def _first(members: list[Member]) -> Member | None:
    plain = (member for member in members if "." not in member.ending)
    return next(plain, members[0] if members else None)
