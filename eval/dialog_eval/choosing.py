"""Chooses, from a sweep on a validation split, how far a checkpoint moves from its baseline (WiSE-FT, 2109.01903).

Of the checkpoint and its weight blends with the baseline, the best at questions is chosen among those that retrieve as
well as the baseline: for image R@1 and text R@1, the 95 % interval of the paired difference begins above a limit.
"""

from dataclasses import dataclass
from pathlib import Path

from dialog_eval.metrics.intervals import paired_bootstrap
from dialog_eval.models import blend_weights
from dialog_eval.results import Entry, Metric, Results
from dialog_gen.clip.base import Clip
from dialog_gen.clip.loader import save_clip
from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.errors import UsageError
from dialog_gen.core.files import whole_folder, write_json

KEPT = ("image R@1", "text R@1")
_GAINED = "accuracy"
_FILE = "choice.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The blend that was chosen."""

    beta: float
    """The baseline's share of the weights; 0 is the checkpoint itself."""
    lowest: float
    """The lowest end of the intervals of `KEPT`, as a difference to the baseline."""
    accuracy: float | None
    """The VQA accuracy, by the best way of asking, if it was measured."""


def choose_blend(results: Results, most_loss: float) -> Choice:
    """Chooses by the results of a sweep with weight blends; without VQA, the least share of the baseline.

    `most_loss`: the limit is minus this difference of recalls, from 0 to 1. Raises UsageError for results without
    retrieval or weight blends, and if no blend is above the limit.
    """
    points: dict[float, dict[str, Metric]] = {}
    for entry in results.entries:
        if (beta := _beta(entry, results)) is not None:
            known = points.setdefault(beta, {})
            # Other tasks have an accuracy, too.
            names = {"retrieval": KEPT, "vqa": (_GAINED,)}.get(entry.task, ())
            for metric in entry.metrics:
                if metric.name in names and (metric.name not in known or metric.mean > known[metric.name].mean):
                    known[metric.name] = metric
    baseline = points.pop(1.0, {})
    if not points or not all(name in baseline for name in KEPT):
        raise UsageError("a blend is chosen by retrieval and weight blends: give --captions, --baseline and --betas.")
    choices = [
        Choice(
            beta=beta,
            lowest=min(_low(metrics[name], baseline[name]) for name in KEPT),
            accuracy=metrics[_GAINED].mean if _GAINED in metrics else None,
        )
        for beta, metrics in points.items()
    ]
    allowed = [choice for choice in choices if choice.lowest >= -most_loss]
    if not allowed:
        best = max(choices, key=lambda choice: choice.lowest)
        raise UsageError(
            f"no blend retrieves as well as the baseline: the best one (beta {best.beta:g}) may lose "
            f"{-100 * best.lowest:.1f} points of R@1, and {100 * most_loss:g} are allowed. Measure larger --betas, or "
            "allow more."
        )
    return max(allowed, key=lambda choice: (choice.accuracy or 0.0, -choice.beta))


def save_blend(baseline: Clip, checkpoint: Clip, choice: Choice, folder: Path) -> None:
    """Writes a checkpoint folder with the blended weights of the text tower and logit scale, and choice.json.

    Raises UsageError if `folder` exists, DialogGenError if the disk refuses a write.
    """
    blended = blend_weights(TextTower(baseline.model), TextTower(checkpoint.model), choice.beta).state_dict()
    own = {id(value): name for name, value in checkpoint.model.named_parameters()}
    changed = {own[id(value)]: blended[name] for name, value in TextTower(checkpoint.model).named_parameters()}
    scales = [model.logit_scale.detach() for model in (baseline.model, checkpoint.model)]
    changed["logit_scale"] = choice.beta * scales[0] + (1 - choice.beta) * scales[1]
    with whole_folder(folder) as part:
        write_json(
            part / _FILE,
            {
                "beta": choice.beta,
                "lowest_difference": choice.lowest,
                "accuracy": choice.accuracy,
                "checkpoint": checkpoint.weights_sha256,
                "baseline": baseline.weights_sha256,
            },
        )
        save_clip(checkpoint, part, changed)


def _beta(entry: Entry, results: Results) -> float | None:
    """The baseline's share in the weights of what an entry measures; None for other entries."""
    if entry.label == results.baseline:
        return 1.0
    if entry.blend == "weight":
        return entry.beta
    names = results.settings.get("models", {})
    return 0.0 if entry.blend is None and entry.label in names else None


def _low(metric: Metric, baseline: Metric) -> float:
    """The lower end of the interval of the difference to the baseline."""
    return paired_bootstrap(metric.values, baseline.values, groups=metric.groups)[1]
