"""Lists the files of a folder, a glob, a path or an fsspec URL, in a stable order.

Links are followed. A linked folder is read only once: it is skipped if it can also be reached without links, or if it
was read before.
"""

import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.core import url_to_fs

from dialog_gen.core.errors import UsageError


class Folder:
    """The listing of one directory."""

    _labels: dict[str, "Label"] | None = None
    _capitals: set[str] | None = None

    def __init__(self, fs: Any, path: str) -> None:
        with _readable(path):
            # Object stores may list a directory as an entry of itself.
            entries = [entry for entry in fs.ls(path, detail=True) if entry["name"].rstrip("/") != path.rstrip("/")]
            self.sizes = {name_of(entry["name"]): int(entry["size"] or 0) for entry in entries if _is_file(fs, entry)}
        """File name -> size in bytes."""
        self.folders = {name_of(entry["name"]): False for entry in entries if entry["type"] == "directory"}
        """Folder name -> whether it is a link."""
        self.folders |= {name_of(e["name"]): True for e in entries if e.get("islink", False) and fs.isdir(e["name"])}
        links = (name_of(entry["name"]) for entry in entries if entry.get("islink", False))
        self.dead_links = {name for name in links if name not in self.sizes and name not in self.folders}
        """Names of the links that lead to no file and no folder."""

    def has_file(self, stem_: str, extensions: tuple[str, ...]) -> bool:
        """Whether there is a file with this stem and one of the extensions, in lower or upper case."""
        if any(f"{stem_}.{extension}" in self.sizes for extension in extensions):
            return True
        if self._capitals is None:
            # Few files, if any: most names of a folder are not kept twice in memory.
            others = (name for name in self.sizes if not name.endswith(extensions))
            self._capitals = {stem(name) for name in others if extension_of(name) in extensions}
        return stem_ in self._capitals

    def labels(self, extensions: tuple[str, ...]) -> "dict[str, Label]":
        """Names of the files with these extensions -> their labels, which are unique in the folder.

        The label is the name without its extension. Among files that differ in the extension only, one keeps that
        label: the one whose extension comes first in `extensions`, lower case first. The others keep the extension.
        """
        if self._labels is None:

            def rank(name: str) -> tuple[int, bool, str]:
                extension = extension_of(name)
                return extensions.index(extension), not name.endswith(extension), name

            names = (name for name in self.sizes if extension_of(name) in extensions)
            labels, used, folded = dict[str, Label](), set[str](), set[str]()
            for name in sorted(names, key=rank):
                text = stem(name)
                if text in used:
                    text = name
                while text in used:
                    text += "~"
                labels[name] = Label(text, is_repeated=text.casefold() in folded)
                used.add(text)
                folded.add(text.casefold())
            self._labels = labels
        return self._labels


class Label(NamedTuple):
    """What a file is called in ids and shard names; `is_repeated` if another label differs in upper case only."""

    text: str
    is_repeated: bool


class ListedFile(NamedTuple):
    """A file, or a link that leads nowhere, and the listing of its folder."""

    path: str
    folder: Folder
    is_hidden: bool = False
    """Whether its name begins with a dot, and it was found in a folder, not named by the user."""

    @property
    def extension(self) -> str:
        """See `extension_of`; that of a hidden file or a link that leads nowhere is "": no kind of source reads it."""
        return "" if self.is_hidden or self.is_dead_link else extension_of(self.path)

    @property
    def is_dead_link(self) -> bool:
        """Whether it is a link that leads nowhere."""
        return bool(self.folder.dead_links) and name_of(self.path) in self.folder.dead_links

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.folder.sizes[name_of(self.path)]

    def size_of(self, ending: str) -> int | None:
        """The size in bytes of the file with the same stem and another ending, such as ".txt"; None if none exists."""
        return self.folder.sizes.get(stem(name_of(self.path)) + ending)


@dataclass(frozen=True, slots=True)
class FileSet:
    """The files of a source: the `chosen` ones, or, if that is None, all files below `root`."""

    fs: Any
    root: str
    chosen: tuple[str, ...] | None = None

    @classmethod
    def of(cls, spec: str, expected: Callable[[], str]) -> "FileSet":
        """The files at `spec`; `expected` returns the accepted forms for an error message.

        Raises UsageError if there are no files, or if they cannot be listed.
        """
        try:
            # A file system that caches its listings would use memory for all of them and would not see new files.
            fs, path = url_to_fs(spec, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UsageError(f"cannot open {spec}: {error}") from error
        try:
            with _readable(spec):
                if spec and fs.isdir(path):
                    return cls(fs, path.rstrip("/"))
                if spec and fs.exists(path):
                    if not _is_file(fs, fs.info(path)):
                        # A pipe or device may have no end.
                        raise UsageError(f"{spec} is not a regular file: expected {expected()}")
                    return cls(fs, _parent(path), (path,))
                wildcard = re.search(r"[*?[]", path)
                entries = fs.glob(path, detail=True) if wildcard else {}
                found = sorted(p for p, e in entries.items() if _is_listed(fs, e) and not name_of(p).startswith("."))
        except UsageError:
            raise
        except Exception as error:  # each file system has its own errors for a wrong address, credentials or no network
            raise UsageError(f"cannot read {spec} ({type(error).__name__}: {error}): check the address") from error
        if not wildcard or not found:
            what = "no file matches" if wildcard else "nothing is at"
            raise UsageError(f"{what} {spec!r}: expected {expected()}")
        return cls(fs, _parent(path[: wildcard.start()]), tuple(found))

    def files(self) -> Iterator[ListedFile]:
        """All files outside of hidden folders, sorted by path; hidden files and links that lead nowhere, too."""
        if self.chosen is None:
            yield from self._below(self.root, linked=False, seen=set())
            return
        for parent, paths in groupby(self.chosen, _parent):
            folder = Folder(self.fs, parent or "/")
            yield from (ListedFile(path, folder) for path in paths)

    def _below(self, path: str, *, linked: bool, seen: set[str]) -> Iterator[ListedFile]:
        """`linked`: whether a part of the path is a link; `seen`: the real paths of linked folders already read."""
        if linked:
            real = os.path.realpath(path)
            if real in seen or self._is_reached_without_links(real):
                return
            seen.add(real)
        folder = Folder(self.fs, path or "/")
        # With a slash at its end, a directory is sorted where the paths of its files belong.
        for name in sorted(chain(folder.sizes, folder.dead_links, (name + "/" for name in folder.folders))):
            is_hidden = name.startswith(".")
            if name.endswith("/"):
                if is_hidden:
                    continue
                is_link = folder.folders[name[:-1]]
                yield from self._below(f"{path}/{name[:-1]}", linked=linked or is_link, seen=seen)
            else:
                yield ListedFile(f"{path}/{name}", folder, is_hidden)

    def _is_reached_without_links(self, real_path: str) -> bool:
        root, folder = os.path.realpath(self.root or "/"), Path(real_path)
        if not folder.is_relative_to(root):
            return False
        return not any(name.startswith(".") for name in folder.relative_to(root).parts)

    def is_linked_out(self, path: str) -> bool:
        """Whether links lead from a path below the root to a file elsewhere; only on a local disk."""
        protocol = self.fs.protocol
        if "file" not in ((protocol,) if isinstance(protocol, str) else protocol):
            return False
        return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root or "/"))

    def relative(self, path: str) -> str:
        """A file's path relative to the root."""
        return path[len(self.root) :].lstrip("/")

    def url(self, path: str) -> str:
        """A file's URL; it does not depend on how the spec was spelled."""
        return printable(self.fs.unstrip_protocol(path))

    @contextmanager
    def open(self, path: str) -> Generator[Any]:
        """Opens a file for reading bytes. Raises UsageError if it is missing or may not be read."""
        with _readable(path), self.fs.open(path, "rb") as file:
            yield file


def printable(name: str) -> str:
    """A file name as text that can be encoded in UTF-8: bytes that are not UTF-8 become backslash escapes.

    Different names become different texts: the backslash of a name that looks like such an escape is itself escaped.
    """
    escaped = _LIKE_AN_ESCAPE.sub(r"\\x5c", name) if "\\x" in name else name
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rstrip("/").rpartition("/")[2]


def extension_of(path: str) -> str:
    """The extension of a file name, in lower case, without the dot: "tar.gz" is one; "" if there is none."""
    before, dot, last = name_of(path).lower().rpartition(".")
    if last == "gz" and before.endswith(".tar"):
        return "tar.gz"
    return last if dot else ""


def stem(path: str) -> str:
    """A path without its extension and the dot before it."""
    extension = extension_of(path)
    return path[: -len(extension) - 1] if extension else path.removesuffix(".")


_LIKE_AN_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _is_file(fs: Any, entry: dict[str, Any]) -> bool:
    return entry["type"] == "file" or (entry.get("islink", False) and fs.isfile(entry["name"]))


def _is_listed(fs: Any, entry: dict[str, Any]) -> bool:
    return entry["type"] == "file" or (entry.get("islink", False) and not fs.isdir(entry["name"]))


@contextmanager
def _readable(path: str) -> Generator[None]:
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"no permission to read {path}: {error}") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} is gone: {error}. Did the input change during the run?") from error
