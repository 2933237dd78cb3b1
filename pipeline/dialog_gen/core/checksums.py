"""Checksums of the files in a folder, in a file beside them: damage is found when the folder is read.

    FOLDER/checksums.json    file -> its size in bytes and its SHA-256, in hex; written last

A folder without the file, such as one that another program wrote, is not checked; nor are files added later.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import fsync, open_regular, read_regular, write_json
from dialog_gen.core.json_text import parse_json

CHECKSUMS_FILE = "checksums.json"


def write_checksums(folder: Path, *, free: Collection[str] = ()) -> None:
    """Records the checksums of all files in `folder` and its subfolders, and flushes everything to disk.

    The files `free`, which users may change, are left out. Raises OSError if the folder cannot be written.
    """
    found: dict[str, dict[str, int | str]] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (CHECKSUMS_FILE, *free):
            fsync(path)
            found[name] = {"size": path.stat().st_size, "sha256": _sha256_of(path)}
    write_json(folder / CHECKSUMS_FILE, found)
    fsync(folder / CHECKSUMS_FILE)
    fsync(folder)


def check_checksums(folder: Path, only: str | None = None) -> None:
    """Checks all recorded files of `folder`, or the one that is named `only`, if the folder has checksums.

    Raises UsageError for a file that is missing or is not what was recorded.
    """
    record = folder / CHECKSUMS_FILE
    try:
        content = read_regular(record)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{record} cannot be read: {error.strerror}.") from None
    try:
        recorded = {str(name): (entry["size"], entry["sha256"]) for name, entry in parse_json(content).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{record} is damaged: {_advice(folder)}") from None
    for name, (size, sha256) in recorded.items():
        if only in (None, name):
            file = folder / name
            try:
                good = file.stat().st_size == size and _sha256_of(file) == sha256
            except OSError as error:
                raise UsageError(f"{file} cannot be read ({error.strerror}): {_advice(folder)}") from None
            if not good:
                raise UsageError(f"{file} is damaged, its checksum is not the one recorded: {_advice(folder)}")


def _sha256_of(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _advice(folder: Path) -> str:
    return f"get {folder} again, or make it anew. If the file was changed on purpose, remove {folder / CHECKSUMS_FILE}."
