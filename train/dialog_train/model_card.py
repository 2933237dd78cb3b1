"""The model card of a checkpoint: its data, its method, its figures with intervals, and its limits.

The figures come from results.json files of `dialog-eval`. Only those of the checkpoint's own weights are shown, with
the baseline and the references that need no model beside them.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import ModelCardData
from pydantic import BaseModel, Field

from dialog_gen.clip.base import Clip
from dialog_gen.core.errors import DialogGenError, UsageError
from dialog_gen.core.files import read_regular
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.plain_problems import first_problem
from dialog_gen.core.plural import count_of
from dialog_gen.core.sealed_json import DamagedJsonError, unsealed
from dialog_gen.core.version import __version__
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.publish.card import licence_fields
from dialog_gen.publish.markdown import Markdown, markdown_template
from dialog_train.loop import EMA_FOLDER, MODEL_FOLDER, REPORT_FILE

_DATA_KEYS = ("model", "protocol", "source", "engine")
# Of no use to a reader, or a path of the machine.
_HIDDEN = ("out", "data.work", "log")
# The end of the label of a model that sees the mean image in place of every image.
_BLIND = ", blind"


class Metric(BaseModel):
    """A measure in a results.json, with its 95 % interval."""

    name: str
    mean: float
    low: float
    high: float


class Entry(BaseModel):
    """One model on one task, the part of a results.json that a card shows."""

    label: str
    task: str
    dataset: str
    protocol: str
    weights_sha256: str
    blend: str | None = None
    beta: float | None = None
    notes: list[str] = []
    metrics: list[Metric]


class Reference(BaseModel):
    """A value that needs no model, such as that of always answering "yes"."""

    name: str
    task: str
    dataset: str
    metric: str
    value: float


class Results(BaseModel):
    """The content of a results.json, without the values of single items."""

    format: str = Field(pattern=r"^dialog-eval results \d+$")
    baseline: str | None = None
    entries: list[Entry]
    references: list[Reference] = []


class Figures(BaseModel):
    """What a card shows about one task on one dataset, measured in one way."""

    task: str
    dataset: str
    protocol: str
    own: list[Entry] = []
    baseline: list[Entry] = []
    references: list[Reference] = []

    def rows(self) -> list[tuple[object, ...]]:
        """(measure, model, value, interval) of each figure."""
        found: list[tuple[object, ...]] = []
        for name in dict.fromkeys(metric.name for entry in self.own for metric in entry.metrics):
            for kind, entries in (("this model", self.own), ("baseline", self.baseline)):
                for entry in entries:
                    found += [
                        (name, f"{entry.label} ({kind})", f"{m.mean:.4g}", f"{m.low:.4g} to {m.high:.4g}")
                        for m in entry.metrics
                        if m.name == name
                    ]
            found += [(name, r.name, f"{r.value:.4g}", "no model") for r in self.references if r.metric == name]
        return found

    def notes(self) -> list[str]:
        """What the evaluation says about its figures."""
        entries = [*self.own, *self.baseline]
        return list(dict.fromkeys(f"{entry.label}: {note}" for entry in entries for note in entry.notes))


def read_figures(paths: Iterable[Path], weights_sha256: str, beta: float | None = None) -> list[Figures]:
    """Collects the figures of the weights from results.json files, with the baseline's beside.

    Blends are left out, except that which the checkpoint itself is if it has a third tower: with its `beta`.

    Raises UsageError for a file that cannot be read, has another layout, or has no figure of these weights.
    """
    found: dict[tuple[str, str, str], Figures] = {}
    for path in paths:
        results = _results(path)
        own = {
            entry.label
            for entry in results.entries
            if entry.weights_sha256 == weights_sha256
            and (not entry.blend or (entry.blend, entry.beta) == ("embedding", beta))
            and not entry.label.endswith(_BLIND)
        }
        if not own:
            labels = ", ".join(dict.fromkeys(repr(entry.label) for entry in results.entries)) or "none"
            raise UsageError(
                f"{path} has no figure of this checkpoint, whose weights_sha256 is {weights_sha256[:12]}...: it has "
                f"{labels}. Give the --results of `dialog-eval` for this checkpoint."
            )
        base = {entry.weights_sha256 for entry in results.entries if entry.label == results.baseline} - {weights_sha256}
        for entry in results.entries:
            key = entry.task, entry.dataset, entry.protocol
            if entry.weights_sha256 == weights_sha256:
                shown = entry.label.removesuffix(_BLIND) in own
            else:
                shown = entry.weights_sha256 in base and not entry.blend
            if not shown:
                continue
            figures = found.setdefault(key, Figures(task=key[0], dataset=key[1], protocol=key[2]))
            kind = figures.baseline if entry.weights_sha256 in base else figures.own
            if entry not in kind:
                kind.append(entry)
        for figures in found.values():
            of_task = [r for r in results.references if (r.task, r.dataset) == (figures.task, figures.dataset)]
            figures.references += [reference for reference in of_task if reference not in figures.references]
    return [figures for figures in found.values() if figures.own]


def _results(path: Path) -> Results:
    try:
        return Results.model_validate(unsealed(read_regular(path)))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except DamagedJsonError as error:
        raise UsageError(f"{path} is damaged or was changed: {error}. Measure again, or fetch it again.") from None
    except ValueError as error:
        raise UsageError(f"{path} is no results.json of dialog-eval: {first_problem(error)}.") from None


def read_training(checkpoint: Path) -> dict[str, Any]:
    """The train.json of the training that wrote OUT/model; empty for a folder that no training wrote.

    Raises UsageError if the file is damaged.
    """
    file = checkpoint.parent / REPORT_FILE
    if checkpoint.name not in (MODEL_FOLDER, EMA_FOLDER) or not file.is_file():
        return {}
    try:
        found: Any = unsealed(read_regular(file))
        return {**found, "recipe": dict(found["recipe"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{file} is damaged: move it away, and the card will say nothing about the training."
        ) from None


def read_average(checkpoint: Path) -> str:
    """What the weights are the average of, as `soup` or `sweep --choose` noted it beside them; empty without a note.

    Raises UsageError if the note is damaged.
    """
    for file, tell in ((checkpoint / "choice.json", _blend), (checkpoint / "soup.json", _soup)):
        if file.is_file():
            try:
                return tell(parse_json(read_regular(file)))
            except (OSError, ValueError, KeyError, TypeError):
                raise UsageError(f"{file} is damaged: remove it, and the card will say nothing of it.") from None
    return ""


def _blend(choice: Any) -> str:
    share = float(choice["beta"])
    return (
        f"{share:.4g} times the weights of {str(choice['baseline'])[:12]} and {1 - share:.4g} times those of "
        f"{str(choice['checkpoint'])[:12]} (SHA-256), as was chosen on validation data"
    )


def _soup(soup: Any) -> str:
    # Without the folders of this machine: RUN/model.
    names = ["/".join(PurePath(name).parts[-2:]) for name in soup["ingredients"]]
    return f"the mean of {count_of(len(names), 'checkpoint')}: {', '.join(names)}"


def make_model_card(
    clip: Clip,
    repo: str,
    *,
    training: Mapping[str, Any],
    average: str = "",
    figures: Sequence[Figures],
    licence: str | None = None,
    with_transformers: bool = False,
) -> str:
    """The text of the card for a checkpoint in the repository `repo` (USER/NAME).

    `training` is what `read_training` returns, `average` what `read_average` does. `with_transformers` says that the
    repository also has the files of `export_hf`. Paths of this machine are shortened to their last part.
    """
    name = repo.rpartition("/")[2]
    recipe = dict(_flat(training.get("recipe", {})))
    template = markdown_template(files("dialog_train").joinpath("model_card.md.jinja").read_text(encoding="utf-8"))
    terms: dict[str, Any] = licence_fields(licence)
    header = ModelCardData(
        **terms,
        library_name="open_clip" if clip.format == "open_clip" else "dialog-gen",
        pipeline_tag="zero-shot-image-classification" if clip.format == "open_clip" else None,
        tags=["clip", "dialog-gen", *(["transformers"] if with_transformers else [])],
        model_name=name,
    )
    text = template.render(
        header=Markdown(f"---\n{header.to_yaml(line_break=chr(10))}\n---"),
        name=name,
        repo=Markdown(repo),
        kind=clip.kind,
        is_clip=clip.format == "open_clip",
        holds_untuned=clip.untuned is not None,
        reads_questions_apart=clip.for_questions() is not clip,
        with_transformers=with_transformers,
        licence=licence,
        weights_sha256=clip.weights_sha256,
        version=Markdown(__version__),
        method=training.get("method"),
        average=average,
        steps=training.get("steps"),
        base=recipe.get("model"),
        data=_data(training),
        losses=[(key, f"{value:.4g}") for key, value in training.get("losses", {}).items()],
        recipe=list(recipe.items()),
        versions=[f"{key} {value}" for key, value in training.get("versions", {}).items()],
        figures=figures,
    )
    return text.rstrip("\n") + "\n"


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, object]]:
    """(key, value) of the settings that are set, with paths shortened."""
    for key, value in table.items():
        place = f"{prefix}{key}"
        if place in _HIDDEN or value is None:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}.")
        elif isinstance(value, list):
            yield place, ", ".join(str(_public(item)) for item in value)
        else:
            yield place, str(_public(value))


def _public(value: object) -> object:
    """A value without what is private in it: folders of this machine or of a store, and the query of a URL."""
    if not isinstance(value, str):
        return value
    if "://" in value:
        parts = urlsplit(value)
        value = parts.path.strip("/") or parts.hostname or ""
    elif not PurePath(value).is_absolute() and ".." not in PurePath(value).parts:
        return value
    return PurePath(value.rstrip("/")).name


def _data(training: Mapping[str, Any]) -> list[tuple[str, object]]:
    """(what, value) about the dialogues of a training, as far as the dataset is still there to be read."""
    location = training.get("recipe", {}).get("data", {}).get("dialogues")
    found: list[tuple[str, object]] = []
    if isinstance(location, str):
        found.append(("dialogues", _public(location)))
        try:
            config = DatasetFolder.existing(location).config()
        except (DialogGenError, OSError, ValueError):
            config = {}
        found += [(f"their {key}", _public(config[key])) for key in _DATA_KEYS if isinstance(config.get(key), str)]
    if rows := training.get("training_set", {}).get("rows"):
        found.append(("images in training", f"{rows}"))
    return found
