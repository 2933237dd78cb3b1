"""Publishes a checkpoint folder with its model card on the Hub, in one commit."""

import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.core.checksums import CHECKSUMS_FILE
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import write_file, writing
from dialog_gen.core.plural import count_of
from dialog_gen.publish.commit import commit_files
from dialog_gen.publish.hub import Hub, Repository, check_name
from dialog_train.hf_export import export_hf
from dialog_train.model_card import make_model_card, read_average, read_figures, read_training
from dialog_train.outputs import checkpoint_folder

CARD_FILE = "README.md"
_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".toml")
"""What checkpoint folders consist of; `.model` are vocabularies of SentencePiece. Pickled weights are none of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedCheckpoint:
    """What was published, or would be."""

    repo: str
    card: str
    """The text of the model card."""
    files: list[str]
    bytes: int
    url: str | None = None
    """None in a dry run."""
    commit: str | None = None

    def __str__(self) -> str:
        where = self.url or f"dry run for {self.repo}, nothing was sent"
        return f"{where}: {count_of(len(self.files), 'file')}, {self.bytes / 1e6:.1f} MB"


def push_checkpoint(
    checkpoint: Path,
    repo: str,
    *,
    results: Iterable[Path] = (),
    licence: str | None = None,
    with_transformers: bool = False,
    private: bool = False,
    replace: bool = False,
    message: str | None = None,
    dry_run: bool = False,
) -> PushedCheckpoint:
    """Publishes a checkpoint with its card as the whole content of the model repository `repo` (USER/NAME).

    `checkpoint` is a checkpoint folder, or the OUT of a training, whose model it takes. `results` are results.json
    files with figures of exactly these weights. `licence` is the publisher's terms. `with_transformers` adds the files
    of `export_hf`. `private` makes a new repository private. `replace` allows overwriting a repository that holds
    something else. `dry_run` sends nothing, needs no token, and writes the card to README.md in the checkpoint folder.

    Raises UsageError for wrong arguments, a damaged checkpoint, files that are not part of one (such as pickled
    weights), a missing token, and a repository that holds something else; HubError if the Hub fails. After an error,
    the repository is unchanged.
    """
    check_name(repo)
    if licence is not None and not licence.strip():
        raise UsageError("--licence is empty: give an SPDX identifier such as apache-2.0, or the terms in words.")
    folder = checkpoint_folder(checkpoint)
    files = _files(folder)
    hub = None if dry_run else Hub("model")
    if hub is not None:
        hub.check_login()
    clip = load_clip(str(folder), needs=())
    figures = read_figures(results, clip.weights_sha256, clip.beta)
    card = make_model_card(
        clip,
        repo,
        training=read_training(folder),
        average=read_average(folder),
        figures=figures,
        licence=licence,
        with_transformers=with_transformers,
    )
    with _exported(clip, with_transformers) as exported:
        content: dict[str, Path | bytes] = {**exported, **files, CARD_FILE: card.encode()}
        size = sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in content.values())
        if hub is None:
            with writing(folder):
                write_file(folder / CARD_FILE, card.encode())
            return PushedCheckpoint(repo=repo, card=card, files=sorted(content), bytes=size)
        repository = hub.repository(repo)
        if repository is None:
            repository = hub.new_repository(repo, private=private)
        else:
            _check_repository(repository, private=private, replace=replace)
        commit = commit_files(hub, repository, content, message or f"weights {clip.weights_sha256[:12]}")
    return PushedCheckpoint(repo=repo, card=card, files=sorted(content), bytes=size, url=hub.url(repo), commit=commit)


def _files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> file. Raises UsageError for a file that is not part of a checkpoint."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (not path.is_dir() and not path.is_file()):
            raise UsageError(f"{path} is a link or no plain file: copy the checkpoint into a folder of its own.")
        if path.is_dir() or name == CARD_FILE:
            continue
        if path.suffix not in _SUFFIXES:
            raise UsageError(
                f"{path} is no part of a checkpoint ({', '.join(_SUFFIXES)}), and may hold pickled code: move it away."
            )
        found[name] = path
    return found


@contextmanager
def _exported(clip: Clip, wanted: bool) -> Generator[dict[str, Path]]:
    """Yields the files for transformers. Raises UsageError if it cannot express the model."""
    if not wanted:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="dialog-train-") as name:
        export_hf(clip, Path(name))
        yield {path.name: path for path in sorted(Path(name).iterdir())}


def _check_repository(repository: Repository, *, private: bool, replace: bool) -> None:
    """Raises UsageError if the repository holds something that must not be overwritten."""
    if private and not repository.private:
        raise UsageError(f"{repository.name} exists and is public: --private is for new ones. Change it on its page.")
    # Checkpoints of ours have checksums of their files; other programs write none.
    if not replace and not repository.is_empty and CHECKSUMS_FILE not in repository.files:
        raise UsageError(
            f"{repository.name} exists and holds no checkpoint of dialog-train but {min(repository.files)!r}: choose "
            "another --repo, or give --replace to replace all of it by this checkpoint."
        )
