"""Small results.json, and how to look at what is made of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dialog_eval.results import Entry, Metric, Results
from dialog_eval.tables.pooling import Section


def entry(
    label: str,
    values: list[float],
    weights: str = "",
    groups: list[int] | None = None,
    *,
    metric: str = "accuracy",
    **changed: Any,
) -> Entry:
    """An entry with one metric; its label stands for its weights, unless told."""
    usual: dict[str, Any] = {"task": "vqa", "dataset": "shapes 0123", "protocol": "MC-18", "model": "shapes-clip"}
    metrics = [Metric.of(metric, values, groups)]
    return Entry(label=label, weights_sha256=weights or label, metrics=metrics, **(usual | changed))


def save(folder: Path, *files: list[Entry], baseline: str | None = "base", **more: Any) -> list[Path]:
    """Writes the entries of 0.json, 1.json and so on."""
    paths = [folder / f"{number}.json" for number in range(len(files))]
    for path, entries in zip(paths, files, strict=True):
        Results(baseline=baseline, entries=entries, **more).save(path)
    return paths


def only(sections: list[Section]) -> Section:
    """The one there is."""
    (section,) = sections
    return section


def sweep(weights: str = "tuned", **changed: Any) -> list[Entry]:
    """base hits 50 % of 40 items, DRAFT 75 %, two blends of each kind what lies between, or more."""
    rng = np.random.default_rng(list(weights.encode()))

    def hits(share: float) -> list[float]:
        return rng.permutation(np.arange(40) < 40 * share).astype(float).tolist()

    blends = [
        entry(
            f"DRAFT, {kind} blend {beta:g}",
            hits(0.75 - beta / 4 + bonus * beta),
            weights,
            blend=kind,
            beta=beta,
            **changed,
        )
        for kind, bonus in (("embedding", 0), ("weight", 0.1))
        for beta in (0.9, 0.5)
    ]
    return [entry("base", hits(0.5), **changed), entry("DRAFT", hits(0.75), weights, **changed), *blends]


def pixels(png: bytes) -> npt.NDArray[np.int64]:
    """(height, width, 3): the picture's RGB, 0 to 255."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(np.int64)
