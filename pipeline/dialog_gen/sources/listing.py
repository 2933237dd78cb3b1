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

    def __init__(self, fs: Any, path: str) -> None:
        with _readable(path):
            # Object stores may list a directory as an entry of itself.
            entries = [entry for entry in fs.ls(path, detail=True) if entry["name"].rstrip("/") != path.rstrip("/")]
            self.sizes = {name_of(entry["name"]): int(entry["size"] or 0) for entry in entries if _is_file(fs, entry)}
        """File name -> size in bytes."""
        self.folders = {name_of(entry["name"]): False for entry in entries if entry["type"] == "directory"}
        """Folder name -> whether it is a link."""
        self.folders |= {name_of(e["name"]): True for e in entries if e.get("islink", False) and fs.isdir(e["name"])}


class ListedFile(NamedTuple):
    """A file, and the listing of its folder."""

    path: str
    folder: Folder

    @property
    def extension(self) -> str:
        """The extension, in lower case, without the dot."""
        return name_of(self.path).rpartition(".")[2].lower()

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
                    return cls(fs, _parent(path), (path,))
                wildcard = re.search(r"[*?[]", path)
                entries = fs.glob(path, detail=True) if wildcard else {}
                found = sorted(p for p, e in entries.items() if _is_file(fs, e) and not name_of(p).startswith("."))
        except UsageError:
            raise
        except Exception as error:  # each file system has its own errors for a wrong address, credentials or no network
            raise UsageError(f"cannot read {spec} ({type(error).__name__}: {error}): check the address") from error
        if not wildcard or not found:
            what = "no file matches" if wildcard else "nothing is at"
            raise UsageError(f"{what} {spec!r}: expected {expected()}")
        return cls(fs, _parent(path[: wildcard.start()]), tuple(found))

    def files(self) -> Iterator[ListedFile]:
        """All files except hidden ones, sorted by path."""
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
        for name in sorted(chain(folder.sizes, (name + "/" for name in folder.folders))):
            if name.startswith("."):
                continue
            if name.endswith("/"):
                is_link = folder.folders[name[:-1]]
                yield from self._below(f"{path}/{name[:-1]}", linked=linked or is_link, seen=seen)
            else:
                yield ListedFile(f"{path}/{name}", folder)

    def _is_reached_without_links(self, real_path: str) -> bool:
        root, folder = os.path.realpath(self.root or "/"), Path(real_path)
        if not folder.is_relative_to(root):
            return False
        return not any(name.startswith(".") for name in folder.relative_to(root).parts)

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
    """A file name as text that can be encoded in UTF-8: bytes that are not UTF-8 become backslash escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_of(path: str) -> str:
    """The last part of a path."""
    return path.rstrip("/").rpartition("/")[2]


def stem(path: str) -> str:
    """A path without its extension. Raises ValueError if it has none."""
    return path[: path.rindex(".")]


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _is_file(fs: Any, entry: dict[str, Any]) -> bool:
    return entry["type"] == "file" or (entry.get("islink", False) and fs.isfile(entry["name"]))


@contextmanager
def _readable(path: str) -> Generator[None]:
    try:
        yield
    except PermissionError as error:
        raise UsageError(f"no permission to read {path}: {error}") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} is gone: {error}. Did the input change during the run?") from error
