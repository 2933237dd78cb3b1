"""Counts of what gates scored and marked in a dataset: gates.json for programs, a table for people."""

from collections import Counter
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.core.plural import count_of
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import kept_pairs, marking_gates
from dialog_gen.gates.base import Limits, why_unscored
from dialog_gen.gates.settings import GateSettings, versions
from dialog_gen.gates.yes_bias import YesBiasSettings, says_yes


def gate_summary(folder: DatasetFolder, settings: GateSettings) -> dict[str, Any]:
    """The content of gates.json: counts over all rows, and the settings of the gates that scored them."""
    counts, scored, marked, alone = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    chosen = settings.get("yes_bias")
    yes_and_no = chosen if isinstance(chosen, YesBiasSettings) else YesBiasSettings()
    for row in folder.rows(["texts", "gates"]):
        for pair, scores in zip(row["texts"], row["gates"], strict=True):
            marks = marking_gates(scores)
            scored.update(score["gate"] for score in scores if score["score"] is not None)
            counts["pairs"] += 1
            counts["kept"] += not marks
            marked.update(marks)
            alone.update(marks if len(marks) == 1 else ())
            answer = says_yes(pair, yes_and_no)
            counts["yes"] += answer is True
            counts["no"] += answer is False
        counts["images"] += 1
        counts["images_kept"] += bool(kept_pairs(row))
    return {
        "images": counts["images"],
        "images_kept": counts["images_kept"],
        "pairs": counts["pairs"],
        "kept": counts["kept"],
        "kept_rate": _share(counts["kept"], counts["pairs"]),
        "yes_share": _share(counts["yes"], counts["yes"] + counts["no"]),
        "gates": {
            name: {
                "scored": scored[name],
                "marked": marked[name],
                "marked_alone": alone[name],
                "rate": _share(marked[name], counts["pairs"]),
            }
            for name in settings
        },
        "settings": {name: limits.model_dump(mode="json") for name, limits in settings.items()},
        "versions": versions(settings),
    }


def summary_text(location: str, summary: dict[str, Any]) -> str:
    """The summary as a table with one line per gate, and a last line for the dataset at `location`."""
    lines = [_line("gate", "limits", "scored", "marked", "only by it", "share")]
    for name, found in summary["gates"].items():
        limits = Limits(**{key: summary["settings"][name][key] for key in ("min", "max")})
        counts = (found[key] for key in ("scored", "marked", "marked_alone"))
        lines.append(_line(name, limits.limits_text(), *counts, _percent(found["rate"])))
    for name, found in summary["gates"].items():
        if summary["pairs"] and not found["scored"]:
            why = why_unscored(name, summary["settings"][name])
            lines.append(f"{name} scored no pair{why and f': {why}'}")
    yes = "" if summary["yes_share"] is None else f"; of the yes/no answers {_percent(summary['yes_share'])} are yes"
    lines.append(
        f"{location}: {summary['kept']} of {count_of(summary['pairs'], 'pair')} kept, on {summary['images_kept']} of "
        f"{count_of(summary['images'], 'image')}{yes}"
    )
    return "\n".join(lines)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _line(gate: str, limits: str, *rest: object) -> str:
    return f"{gate:<17} {limits:<14}" + "".join(f"{cell!s:>11}" for cell in rest)


def without_gates(location: str, shard: str, option: str) -> UsageError:
    """The error for a shard without gates when `option` asks for kept pairs only."""
    return UsageError(
        f"{location}: no gates were applied to shard {shard}, so it is not known which of its pairs to keep: "
        f"run `dialog-gen gate {location}`, or do without {option}."
    )
