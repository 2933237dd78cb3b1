"""Downloads a dataset from the Hub into a dataset folder, and checks every byte."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.files import write_json, writing
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.dataset.command import COMMAND, command_of
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.verify import Verdict, verify
from dialog_gen.dataset.writer import open_writer
from dialog_gen.publish.hub import NOTES, Hub, HubError, Repository, check_name, is_content

_PATTERNS = (*NOTES, "data/*.parquet", "rejects/*.parquet", "shards/*.json")
# The folder in which huggingface_hub records which files are complete.
_PROGRESS = (".cache", "huggingface")


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSummary:
    """The dataset that `out` contains after a pull."""

    out: str
    repo: str
    commit: str
    images: int
    accepted: int
    pairs: int
    shards: int

    def __str__(self) -> str:
        return (
            f"{self.out}: {self.repo} at {self.commit[:12]}: {count_of(self.accepted, 'dialogue')}, "
            f"{count_of(self.pairs, 'question-answer pair')}, {count_of(self.images, 'image')} in "
            f"{count_of(self.shards, 'shard')}: all as promised"
        )


def pull(
    repo: str, out: str | Path, *, revision: str | None = None, on_progress: OnProgress = ignore_progress
) -> PullSummary:
    """Downloads the dataset in the repository `repo` (USER/NAME) to the local folder `out`; resumes interrupted pulls.

    `revision` is a branch, tag or commit. Raises UsageError if the repository does not exist or has no dialog-gen
    dataset, and for an `out` that contains something else; HubError if the Hub fails; FailedCheckError for a file that
    differs from its manifest, which the next pull fetches again.
    """
    out = Path(out)
    check_name(repo)
    hub = Hub()
    repository = hub.repository(repo, revision)
    if repository is None:
        raise UsageError(
            f"there is no dataset {repo} on the Hub, or it is private: check the name, or `hf auth login`."
        )
    if not repository.is_dataset:
        raise UsageError(f"{repo} is no dialog-gen dataset: load it with `datasets.load_dataset` instead.")
    fetched = [path for path in repository.files if any(fnmatchcase(path, pattern) for pattern in _PATTERNS)]
    if strange := [path for path in fetched if not is_content(path)]:
        raise UsageError(f"{repo} holds {strange[0]!r}, which is no file of a dialog-gen dataset: do not use it.")
    _check_out(out, repository)
    hub.keep_off_bars(fetched)
    with writing(str(out), left="the same command goes on"), hub.errors():
        out.mkdir(parents=True, exist_ok=True)
        hub.api.snapshot_download(
            repo, repo_type="dataset", revision=repository.commit, local_dir=out, allow_patterns=list(_PATTERNS)
        )
        _tidy(out, repository)
    # If the Hub cannot be reached, snapshot_download raises no error if there are local files.
    if missing := [path for path in fetched if not (out / path).is_file()]:
        raise HubError(
            f"{count_of(len(missing), 'file')} of {repo} did not come, the first is {missing[0]}: pull again."
        )
    arguments = {"repo": repo, "revision": repository.commit}
    made_by = command_of("pull", arguments, paths=[]).model_copy(update={"config": repository.config})
    with writing(str(out)):
        write_json(out / COMMAND, made_by.to_json())
    folder = DatasetFolder(str(out))
    verdict = verify(folder, on_progress=on_progress)
    if verdict.problem_count:
        raise FailedCheckError(
            f"{count_of(verdict.problem_count, 'problem')} in {out}, the first is: {verdict.problems[0]}. "
            "The same command fetches damaged files again; if it does not help, the repository is damaged."
        )
    return _summary(out, repository, verdict)


def fetch_missing(location: str, repo: str, revision: str) -> None:
    """Downloads the shards that a dataset folder lacks, and the other files that it lacks, from one commit.

    Raises UsageError if the commit has another configuration or does not exist, and HubError if the Hub fails.
    """
    hub = Hub()
    repository = hub.repository(repo, revision)
    if repository is None or not repository.is_dataset or repository.config is None:
        raise UsageError(f"there is no dataset {repo} at {revision} on the Hub any more, or it is private.")
    with open_writer(location, repository.config) as store:
        there = set(store.shards())
        paths = [path for path in repository.files if any(fnmatchcase(path, pattern) for pattern in _PATTERNS)]
        # Manifests last: they mark shards as complete.
        for path in sorted(filter(is_content, paths), key=lambda path: path.startswith("shards/")):
            shard = PurePosixPath(path).stem
            new = not store.exists(path) if "/" not in path else not there & {shard, shard.removesuffix(".v2")}
            if new:
                with hub.errors():
                    fetched = hub.api.hf_hub_download(
                        repo, path, repo_type="dataset", revision=repository.commit, local_dir=store.tmp / "hub"
                    )
                store.put(path, Path(fetched))


def _check_out(out: Path, repository: Repository) -> None:
    """Raises UsageError if `out` contains something that a pull would overwrite or mix with other data."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: choose another folder.")
    folder = DatasetFolder(str(out))
    if not folder.exists("config.json"):
        if any(out.iterdir()) and not out.joinpath(*_PROGRESS).is_dir():
            raise UsageError(f"--out {out} is no dataset folder and not empty: choose another folder.")
    elif folder.config() != repository.config:
        raise UsageError(
            f"--out {out} holds a dataset with another configuration than {repository.name}: choose another folder."
        )
    elif own := [name for name in folder.shards() if f"shards/{name}.json" not in repository.files]:
        raise UsageError(
            f"--out {out} has shards that {repository.name} lacks, such as {own[0]}: choose another folder."
        )


def _tidy(out: Path, repository: Repository) -> None:
    """Removes files that the repository no longer has, and the library's records, which may list damaged files."""
    for part in ("data", "rejects"):
        for file in (out / part).glob("*.parquet"):
            if f"{part}/{file.name}" not in repository.files:
                file.unlink()
    shutil.rmtree(out.joinpath(*_PROGRESS), ignore_errors=True)
    with suppress(OSError):
        (out / _PROGRESS[0]).rmdir()


def _summary(out: Path, repository: Repository, verdict: Verdict) -> PullSummary:
    return PullSummary(
        out=str(out),
        repo=repository.name,
        commit=repository.commit,
        images=verdict.images,
        accepted=verdict.accepted,
        pairs=verdict.pairs,
        shards=verdict.shards,
    )
