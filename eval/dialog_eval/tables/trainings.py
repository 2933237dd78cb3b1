"""What was trained on what: the trainings that results record, for each label."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dialog_eval.results import Results

_DATA = ("data.dialogues", "data.images")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The trainings of one label, which differ in their seeds."""

    label: str
    text: str
    """Such as "tuned from shapes-clip on 3,031 images of demo-dialogues in 400 steps, 3 seeds" """
    method: str
    """A sentence, or empty"""
    settings: dict[str, str]
    """The settings that not all labels of the page share"""
    test_images: str
    """Whether test images are among those of the training, as a sentence"""
    trained_on_tests: bool
    """Whether some are"""


def trainings(read: Iterable[Results]) -> list[Training]:
    """The trainings of all labels, in order of first appearance; labels that no training is known of are left out."""
    records: dict[str, dict[str, Mapping[str, Any]]] = {}
    checks: dict[str, list[tuple[int, int | None]]] = {}
    for results in read:
        models = results.settings.get("models")
        for label, model in models.items() if isinstance(models, dict) else ():
            training = model.get("training") if isinstance(model, dict) else None
            if isinstance(training, dict):
                records.setdefault(label, {})[str(model.get("weights_sha256"))] = training
                checks.setdefault(label, []).append(_check(model.get("test_images")))
    first = {label: _settings(next(iter(some.values()))) for label, some in records.items()}
    values: dict[str, set[str]] = {}
    for settings in first.values():
        for key, value in settings.items():
            values.setdefault(key, set()).add(value)
    apart = {key for key, some in values.items() if len(some) > 1 or sum(key in s for s in first.values()) < len(first)}
    return [
        Training(
            label=label,
            text=_text(list(some.values())),
            method=str(next(iter(some.values())).get("method") or ""),
            settings={key: value for key, value in first[label].items() if key in apart},
            test_images=_test_images(checks[label]),
            trained_on_tests=any(trained_on for _, trained_on in checks[label]),
        )
        for label, some in records.items()
    ]


def _check(found: Any) -> tuple[int, int | None]:
    """Number of test images, and of those that the training read; None if results do not say."""
    images, trained_on = (found.get(key) if isinstance(found, dict) else None for key in ("images", "trained_on"))
    return (images, trained_on) if isinstance(images, int) and isinstance(trained_on, int) else (0, None)


def _test_images(checks: Sequence[tuple[int, int | None]]) -> str:
    known = [(trained_on, images) for images, trained_on in checks if trained_on is not None]
    trained_on, images = max(known, default=(0, 0))
    if trained_on:
        verb = "is" if trained_on == 1 else "are"
        return f"{trained_on:,} of {_counted(images, 'test image')} {verb} among its training images."
    if len(known) < len(checks):
        return (
            "Whether test images are among its training images is not known: its dialogues could not be read when "
            "it was measured."
        )
    return f"None of {_counted(images, 'test image')} is among its training images."


def _settings(training: Mapping[str, Any]) -> dict[str, str]:
    settings = training.get("settings")
    return {key: str(value) for key, value in settings.items()} if isinstance(settings, dict) else {}


def _text(some: list[Mapping[str, Any]]) -> str:
    first, settings = some[0], _settings(some[0])
    from_scratch = settings.get("from_scratch") == str(True)
    start = "with the architecture of" if from_scratch else "from"
    models = list(dict.fromkeys(str(one["model"]) for one in some if isinstance(one.get("model"), str)))
    parts = [f"{start} {', '.join(models)}"] if models else []
    # Of a training on images with captions, the recipe has no dialogues.
    data = next((settings[key] for key in _DATA if settings.get(key, str(None)) != str(None)), None)
    steps = first.get("steps")
    rows = [number for one in some if isinstance(number := one.get("rows"), int)]
    if rows:
        parts.append(f"on {_counted(max(rows), 'image')}" + (f" of {data}" if data else ""))
    elif data:
        parts.append(f"on {data}")
    if isinstance(steps, int):
        parts.append(f"in {_counted(steps, 'step')}")
    if (batch := settings.get("optim.batch_size")) is not None:
        parts.append(f"of {batch}")
    return (
        ("trained from scratch " if from_scratch else "tuned ")
        + " ".join(parts)
        + (f", {len(some)} seeds" if len(some) > 1 else "")
    )


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
