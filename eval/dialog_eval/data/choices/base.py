"""The base of benchmarks that compare a few images with a few texts, and their registry.

A module of this folder, or of another package through the entry-point group `dialog_eval.benchmarks`, reads the files
of a benchmark as they are published and registers it:

    BENCHMARKS.register("sugarcrepe")(Benchmark(title="SugarCrepe", read=read, measures={"accuracy": CHOICE}))

`dialog-eval choice --benchmark sugarcrepe` measures it. `--help` imports these modules, so they import torch only
inside functions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from dialog_gen.core.errors import UsageError
from dialog_gen.core.registry import Registry

RuleName = Literal["choice", "texts_alone", "text_score", "image_score", "group_score"]
"""A function of `dialog_eval.metrics.choice`; importing it would import torch."""


class ImagePart(NamedTuple):
    """An image, or part of one."""

    file_name: str
    """Matched with the ids of the image index, as `ImageIndex.by_file_name` does."""
    box: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom in pixels of the part; None: the whole image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceItem:
    """One image, with `right` true texts followed by false ones; or two images with one text each."""

    images: tuple[ImagePart, ...]
    texts: tuple[str, ...]
    right: int = 1
    part: str = ""
    """The part of the benchmark that the item belongs to, such as "swap_att"."""

    @property
    def can_be_passed(self) -> bool:
        """Whether any scores pass its rules.

        None do if a right text is also a wrong one, or a group has an image or a text twice: a tie fails.
        """
        if len(self.images) == 1:
            return set(self.texts[: self.right]).isdisjoint(self.texts[self.right :])
        return len(set(self.images)) == len(self.images) and len(set(self.texts)) == len(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A benchmark: how its files are read and which rules its items must pass."""

    title: str
    """Its name in the results, such as "SugarCrepe"."""
    read: Callable[[Sequence[Path]], list[ChoiceItem]]
    """Reads its files. Raises UsageError for unsuitable ones."""
    suffixes: tuple[str, ...]
    """Suffixes of its files: those that are read where a folder is given."""
    measures: Mapping[str, RuleName] = field(default_factory=lambda: {"accuracy": "choice"})
    """Measure -> rule. The first is the headline, which is also given for each part."""
    shows_parts: bool = True
    """Whether the headline is given for each part."""
    averaged: Callable[[Mapping[str, int]], set[str]] | None = None
    """Which parts, of part -> number of items, the measure "mean over parts" averages; None: there is no such
    measure."""
    published_as: str = ""
    """Names of its files as they are published, for errors, such as "visual_genome_relation.json"."""

    @property
    def hint(self) -> str:
        """A sentence that names the files to give; empty if they have no fixed names."""
        return f" Give --files {self.published_as}." if self.published_as else ""


BENCHMARKS = Registry[Benchmark](
    "benchmark", "dialog_eval.data.choices", base=Benchmark, group="dialog_eval.benchmarks"
)


def check_choice(texts: Sequence[str], path: Path, number: int) -> None:
    """Raises UsageError for a record, the file's `number`th, whose captions leave nothing to choose."""
    if len(set(texts)) < 2:
        raise UsageError(f"{path}: record {number} has no two different captions: there is nothing to choose.")


def every_part(sizes: Mapping[str, int]) -> set[str]:
    """All parts, for `Benchmark.averaged`."""
    return set(sizes)


def files_of(benchmark: Benchmark, given: Sequence[Path]) -> list[Path]:
    """The files, each once and sorted, with those of the benchmark's suffixes in place of a folder.

    Raises UsageError for a path that does not exist and a folder without such files.
    """
    files: list[Path] = []
    for path in given:
        if not path.is_dir():
            files.append(path)
            continue
        found = [file for file in path.iterdir() if file.suffix.lower() in benchmark.suffixes and file.is_file()]
        if not found:
            suffixes = " or ".join(benchmark.suffixes)
            raise UsageError(f"the folder {path} has no {suffixes} files of {benchmark.title}.{benchmark.hint}")
        files += found
    return sorted({file.resolve(): file for file in reversed(files)}.values())
