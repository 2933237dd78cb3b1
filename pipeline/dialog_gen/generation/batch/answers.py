"""The answers that batches have given until now: OUT/batch/answers.sqlite."""

import json
import sqlite3
import threading
from collections.abc import Iterable
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder

FOLDER = "batch"
_FILE = "answers.sqlite"


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
        except sqlite3.DatabaseError as error:
            self._file.close()
            raise UsageError(f"{self._path}: {error}. Remove it, and read all result files again.") from None

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, custom_id: str) -> dict[str, Any] | None:
        """The stored answer; None if there is none."""
        with self._lock:
            found = self._file.execute("SELECT answer FROM answers WHERE id = ?", (custom_id,)).fetchone()
        return None if found is None else json.loads(found[0])

    def add(self, answers: Iterable[tuple[str, dict[str, Any]]]) -> int:
        """Stores all answers or, after an error, none of them; returns the number of new ones."""
        with self._lock, self._file:
            before = self._file.total_changes
            self._file.executemany(
                "INSERT OR IGNORE INTO answers VALUES (?, ?)",
                ((custom_id, json.dumps(answer)) for custom_id, answer in answers),
            )
            return self._file.total_changes - before
