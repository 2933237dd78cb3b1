"""The answers that batches have given until now: OUT/batch/answers.sqlite.

Each has a checksum, since SQLite has none; those of earlier versions have not. All are read when the file is opened.
"""

import json
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.json_text import parse_json
from dialog_gen.dataset.folder import DatasetFolder

FOLDER = "batch"
_FILE = "answers.sqlite"
_CRC32 = "crc32"


class Answers:
    """Custom id -> answer, on disk; the first answer to a request stays. May be used from several threads."""

    def __init__(self, folder: DatasetFolder) -> None:
        """Opens or creates the file. Raises UsageError if the dataset is not on local disk, or the file is damaged."""
        if folder.local_root is None:
            raise UsageError(f"--out {folder.location}: batches need a dataset folder on local disk.")
        self.folder = folder.local_root / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / _FILE
        self._lock = threading.Lock()
        self._file = sqlite3.connect(self._path, check_same_thread=False)
        try:
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (id TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
            self._file.commit()
            self._check()
        except (sqlite3.Error, ValueError) as error:
            self._file.close()
            raise UsageError(f"{self._path}: {error}. Remove it, and read all result files again.") from None

    def _check(self) -> None:
        """Raises sqlite3.Error or ValueError for a damaged file."""
        (found,) = self._file.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise ValueError(found.splitlines()[-1])
        for custom_id, text in self._file.execute("SELECT id, answer FROM answers"):
            answer = parse_json(text)
            if answer.get(_CRC32) not in (None, _crc32(custom_id, answer)):
                raise ValueError(f"the answer to {custom_id} is not the one that was stored")

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, custom_id: str) -> dict[str, Any] | None:
        """The stored answer; None if there is none."""
        with self._lock:
            found = self._file.execute("SELECT answer FROM answers WHERE id = ?", (custom_id,)).fetchone()
        return None if found is None else json.loads(found[0])

    @staticmethod
    def _row(custom_id: str, answer: dict[str, Any]) -> tuple[str, str]:
        return custom_id, json.dumps({**answer, _CRC32: _crc32(custom_id, answer)})

    def add(self, answers: Iterable[tuple[str, dict[str, Any]]]) -> int:
        """Stores all answers or, after an error, none of them; returns the number of new ones."""
        with self._lock, self._file:
            before = self._file.total_changes
            self._file.executemany(
                "INSERT OR IGNORE INTO answers VALUES (?, ?)",
                (self._row(custom_id, answer) for custom_id, answer in answers),
            )
            return self._file.total_changes - before


def _crc32(custom_id: str, answer: Mapping[str, Any]) -> int:
    content = {key: value for key, value in answer.items() if key != _CRC32}
    return zlib.crc32(json.dumps([custom_id, content], sort_keys=True).encode())
