"""Link rot of a URL list: how many URLs still gave an image, why the others did not, and retries.

A retry requests the URLs that failed. Its tars go to OUT/images/retry-1, retry-2 and so on; other tars do not change.
"""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dialog_gen.core.checksums import check_checksums, write_checksums
from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.download.img2dataset.supervisor import download_list, finished_shards, outcomes_of
from dialog_gen.download.manifests import DownloadOptions
from dialog_gen.download.outcomes import FINAL, MEANING, OUTCOMES, STILL_THERE, Outcome

_SHARDS_PER_FILE: Final = 256  # in the files of a list, which img2dataset reads one by one


@dataclass(frozen=True, slots=True)
class LinkRot:
    """Counts of the rows of a list by outcome; each row is counted once, with its latest outcome."""

    outcomes: Counter[Outcome]
    retries: int
    """How often failed URLs were requested again."""

    @property
    def rows(self) -> int:
        """Number of rows of the list."""
        return self.outcomes.total()

    @property
    def urls(self) -> int:
        """Number of different URLs."""
        return self.rows - self.outcomes["duplicate_url"] - self.outcomes["no_url"]

    @property
    def success_rate(self) -> float:
        """Fraction of the URLs whose image was stored."""
        return self.outcomes["success"] / self.urls if self.urls else 0.0

    @property
    def alive(self) -> float:
        """Fraction of the URLs that still lead to an image, even if it could not or must not be stored."""
        return sum(self.outcomes[outcome] for outcome in STILL_THERE) / self.urls if self.urls else 0.0

    def to_json(self) -> dict[str, Any]:
        """The content of link_rot.json; `outcomes` lists those that occurred, most frequent first."""
        return {
            "rows": self.rows,
            "urls": self.urls,
            "success_rate": round(self.success_rate, 6),
            "alive": round(self.alive, 6),
            "opted_out": self.outcomes["opted_out"],
            "duplicates": self.outcomes["duplicate_url"],
            "retries": self.retries,
            "outcomes": {outcome: count for outcome, count in self._sorted() if count},
        }

    def __str__(self) -> str:
        lines = [
            f"  {outcome:<16}{count:>12}  {count / self.rows:>6.1%}  {MEANING[outcome]}"
            for outcome, count in self._sorted()
            if count
        ]
        total = (
            f"{count_of(self.rows, 'row')}, {count_of(self.urls, 'URL')}: {self.success_rate:.1%} stored, "
            f"{self.alive:.1%} still there"
        )
        return "\n".join([*lines, f"  {total}"])

    def _sorted(self) -> list[tuple[Outcome, int]]:
        return sorted(((o, self.outcomes[o]) for o in OUTCOMES), key=lambda item: (item[0] != "success", -item[1]))


def retry_folders(images: Path) -> list[Path]:
    """The folders of tars that retries added, in order."""
    folders = [path for path in images.glob("retry-*") if re.fullmatch(r"retry-[1-9]\d*", path.name)]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("retry-")))


def measure(images: Path) -> LinkRot:
    """Counts the outcomes of a complete download, and of its retries, from its folder of tars.

    A retry requests every URL that had failed before, so its outcomes replace the failures.

    Raises UsageError if tars or their statistics are missing.
    """
    outcomes = _outcomes(images)
    retries = retry_folders(images)
    for folder in retries:
        failed = sum(outcomes.pop(outcome) for outcome in set(outcomes) - FINAL)
        answered = _outcomes(folder)
        if answered.total() != failed:
            raise UsageError(
                f"{folder} has outcomes of {answered.total()} of the {count_of(failed, 'URL')} that it "
                f"requested: files were lost. "
                "Remove it and all later ones; --retry-failed then requests these URLs again."
            )
        outcomes += answered
    return LinkRot(outcomes, len(retries))


def _outcomes(images: Path) -> Counter[Outcome]:
    done = finished_shards(images)
    files = [path.name for pattern in ("*.tar", "*_stats.json") for path in images.glob(pattern)]
    if lost := sorted({name.removesuffix(".tar").removesuffix("_stats.json") for name in files} - set(done)):
        raise UsageError(
            f"{images} lacks the tar or the statistics of {count_of(len(lost), 'shard')}, first {lost[0]}: put "
            f"them back, or "
            "download into another folder."
        )
    return sum(map(outcomes_of, done.values()), Counter())


def fetch_failed(out: Path, options: DownloadOptions, on_progress: OnProgress = ignore_progress) -> bool:
    """Requests the URLs that failed the last time; returns whether there were any.

    The next call continues an interrupted one. Raises FailedCheckError if shards could not be finished.
    """
    folders = [out / "images", *retry_folders(out / "images")]
    for number in range(1, len(folders)):
        shutil.rmtree(_work(out, number), ignore_errors=True)
    work = _work(out, len(folders))
    remove_damaged_list(work / "urls")
    if not (work / "urls").exists():
        part = work / "urls.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if not _write_failed(folders[-1], part, options.shard_size):
            shutil.rmtree(work)
            return False
        write_checksums(part)
        part.replace(work / "urls")
    (work / "images").mkdir(exist_ok=True)
    download_list(work, options, "downloading again", on_progress)
    (work / "images").replace(out / "images" / f"retry-{len(folders)}")
    shutil.rmtree(work)
    return True


def remove_damaged_list(urls: Path) -> None:
    """Removes the folder of a list if it is not what was written: it can be made again."""
    try:
        check_checksums(urls)
    except UsageError:
        shutil.rmtree(urls)


def _work(out: Path, number: int) -> Path:
    return out / f".retry-{number}"


def _write_failed(images: Path, into: Path, shard_size: int) -> int:
    """Writes a list of the URLs that failed and may still succeed; returns how many there are."""
    rows_per_file = _SHARDS_PER_FILE * shard_size
    pending: list[pa.Table] = []
    total = files = 0
    for table in _failed(images):
        pending.append(table)
        total += table.num_rows
        if total - files * rows_per_file >= rows_per_file:
            whole = pa.concat_tables(pending)
            pq.write_table(whole.slice(0, rows_per_file), into / f"{files:05d}.parquet")
            pending = [whole.slice(rows_per_file)]
            files += 1
    if rest := total - files * rows_per_file:
        pq.write_table(pa.concat_tables(pending).slice(0, rest), into / f"{files:05d}.parquet")
    return total


def _failed(images: Path) -> Iterator[pa.Table]:
    for name in finished_shards(images):
        table = pq.read_table(images / f"{name}.parquet").sort_by("key")
        errors = table["error_message"].to_pylist()  # None after a success
        yield table.select(["url", "caption"]).filter(pa.array([bool(e) and e not in FINAL for e in errors]))
