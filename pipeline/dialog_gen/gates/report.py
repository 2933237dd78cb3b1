"""What the gates of a dataset found: for programs in gates.json, for people as a table."""

from collections import Counter
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import kept_pairs, marking_gates
from dialog_gen.gates.settings import GateSettings, YesBiasSettings
from dialog_gen.gates.yes_bias import says_yes


def gate_report(folder: DatasetFolder, settings: GateSettings) -> dict[str, Any]:
    """The content of gates.json: a function of the rows and the settings."""
    chosen = settings.chosen()
    counts, scored, marked, alone = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    yes_and_no = settings.yes_bias or YesBiasSettings()
    for row in folder.rows(["texts", "gates"]):
        for pair, scores in zip(row["texts"], row["gates"], strict=True):
            marks = marking_gates(scores)
            scored.update(score["gate"] for score in scores if score["score"] is not None)
            counts["pairs"] += 1
            counts["kept"] += not marks
            marked.update(marks)
            alone.update(marks if len(marks) == 1 else ())
            said = says_yes(pair, yes_and_no)
            counts["yes"] += said is True
            counts["no"] += said is False
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
            for name in chosen
        },
        "settings": {name: limits.model_dump(mode="json") for name, limits in chosen.items()},
        "versions": settings.versions(),
    }


def report_text(location: str, report: dict[str, Any]) -> str:
    """The report in a few lines."""
    lines = [_line("gate", "limits", "scored", "marked", "alone", "rate")]
    chosen = GateSettings.model_validate(report["settings"]).chosen()
    for name, found in report["gates"].items():
        counts = (found[key] for key in ("scored", "marked", "marked_alone"))
        lines.append(_line(name, chosen[name].limits_text(), *counts, _percent(found["rate"])))
    yes = "" if report["yes_share"] is None else f"; of the yes/no answers {_percent(report['yes_share'])} are yes"
    lines.append(
        f"{location}: {report['kept']} of {report['pairs']} pairs kept, on {report['images_kept']} of "
        f"{report['images']} images{yes}"
    )
    return "\n".join(lines)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _line(gate: str, limits: str, *rest: object) -> str:
    return f"{gate:<17} {limits:<14}" + "".join(f"{cell!s:>10}" for cell in rest)


def without_gates(location: str, shard: str, option: str) -> UsageError:
    """What there is to say where `option` wants kept pairs only, of a shard that no gate was applied to."""
    return UsageError(
        f"{location}: no gates went over shard {shard}, so that none of its pairs is known to be good: "
        f"run `dialog-gen gate {location}`, or leave out {option}."
    )
