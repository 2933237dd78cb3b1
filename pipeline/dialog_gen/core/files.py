"""Files and folders that appear whole or not at all, and what a disk can refuse as an error for people."""

import errno
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dialog_gen.core.errors import DialogGenError, UsageError

_TODO = {
    errno.ENOSPC: "Free some space and run again",
    errno.EDQUOT: "Free some of your quota and run again",
    errno.EACCES: "Check the permissions, or choose another --out",
    errno.EPERM: "Check the permissions, or choose another --out",
    errno.EROFS: "Choose another --out",
    errno.ENOENT: "Choose another --out",
    errno.ENOTDIR: "Choose another --out",
    errno.EEXIST: "Choose another --out",
}


@contextmanager
def writing(location: str | Path, *, left: str = "nothing was written") -> Generator[None]:
    """Raises DialogGenError for what the disk or the bucket of `location` refuses; `left` says what is there then."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        # Object stores and safetensors give no number.
        what = (error.strerror if isinstance(error, OSError) else None) or error
        todo = _TODO.get(number or 0, "Check the disk and run again")
        raise DialogGenError(f"cannot write {location}: {what}. {todo}; {left}.") from error


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A path to write to; what was written there takes the place of `path` unless the block raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path) -> Generator[Path]:
    """A folder to write to, which becomes `out` when the block ends and is removed when it raises.

    Raises UsageError where `out` exists, DialogGenError for what the disk refuses.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists already: choose another one.")
    part = out.with_name(f".{out.name}.part")
    with writing(out):
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        part.mkdir(parents=True)
        try:
            yield part
            part.replace(out)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that was asked for: whole or not at all. Raises DialogGenError for what the disk refuses."""
    with writing(path), replacing(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as a file that appears whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
