"""What is in a source and is not used: it is counted by reason, and the count is part of a dataset's accounting.

Every regular file and every link of a folder and every member of a tar is an image, a text that belongs to an image,
or unused; so is every image of a Parquet row. Hidden files (their names begin with a dot) are unused: systems and
programs put their own there, such as "._1.jpg" beside "1.jpg". What is in a hidden folder is not part of a source.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

from dialog_gen.core.plural import count_of

UnusedReason = Literal["second_image", "unsupported_format", "other_source", "no_image", "link", "hidden", "other_file"]
UNUSED_REASONS: Final[tuple[str, ...]] = get_args(UnusedReason)
"""
second_image        another image of the same sample or row, if only the first is used
unsupported_format  an image in a format that is not read, such as SVG
other_source        a file that would be read if the source had no files of another kind, such as an image beside tars
no_image            a text of a sample that has no image
link                a link in a tar, or one in a folder that leads to no file
hidden              a hidden file that would be read if its name did not begin with a dot
other_file          anything else, such as a class label or a README
"""

_NOUNS: Final[Mapping[str, tuple[str, str]]] = {
    "second_image": ("further image", " of a sample"),
    "unsupported_format": ("image", " in a format that is not read"),
    "other_source": ("file", " beside those of another kind"),
    "no_image": ("text", " without an image"),
    "link": ("link", " to no file"),
    "hidden": ("file", " whose name begins with a dot"),
    "other_file": ("file", " without an image or a caption"),
}
"""Reason -> a noun, of which there may be several, and what follows it."""

UNSUPPORTED_EXTENSIONS: Final = (
    *("svg", "svgz", "jxl", "jp2", "j2k", "jpf", "jpx", "psd", "xcf", "ai", "eps", "ico", "icns", "tga", "dds", "exr"),
    *("hdr", "dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "pef", "srw", "dcm", "wmf", "emf"),
)
"""Extensions of image formats that are not read."""

_NAMES_KEPT: Final = 3


def unused_text(reason: str, count: int) -> str:
    """A reason in words, such as "2 texts without an image"; one that is not known here is shown as it is."""
    noun, rest = _NOUNS.get(reason, (reason, ""))
    return f"{count_of(count, noun)}{rest}" if rest else f"{reason} {count}"


class Unused(NamedTuple):
    """Something that is not used, or `number` such things; `name` is that of the first, as printable text."""

    name: str
    reason: UnusedReason
    number: int = 1


@dataclass(slots=True)
class UnusedTally:
    """Counts what is not used, and keeps the first names."""

    counts: Counter[str] = field(default_factory=Counter[str])
    names: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def add(self, items: Iterable[Unused]) -> None:
        """Counts some items."""
        for item in items:
            self.counts[item.reason] += item.number
            self._keep(item.reason, (item.name,))

    def merge(self, counts: Mapping[str, int], names: Mapping[str, tuple[str, ...]]) -> None:
        """Adds the counts and names of another tally."""
        self.counts.update(counts)
        for reason, some in names.items():
            self._keep(reason, some)

    def lines(self, *, only: Collection[str] = UNUSED_REASONS) -> Iterator[str]:
        """A line for each of these reasons, such as "7 further images of a sample: 'a.jpg', 'b.jpg', 'c.jpg', ..."."""
        for reason in UNUSED_REASONS:
            if self.counts[reason] and reason in only:
                names = [repr(name) for name in self.names[reason]]
                more = ", ..." if self.counts[reason] > len(names) else ""
                yield f"{unused_text(reason, self.counts[reason])}: {', '.join(names)}{more}"

    def _keep(self, reason: str, names: tuple[str, ...]) -> None:
        kept = self.names.get(reason, ())
        if len(kept) < _NAMES_KEPT:
            self.names[reason] = (kept + names)[:_NAMES_KEPT]
