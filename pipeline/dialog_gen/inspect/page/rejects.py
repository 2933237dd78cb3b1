"""Examples of the rows that could not be used, for the page."""

from typing import Any

from dialog_gen.core.hashing import hash_64
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.inspect.page.pictures import Pictures
from dialog_gen.inspect.page.telling import REJECT_COLUMNS, cut, reject
from dialog_gen.inspect.sampling import Place, Smallest, places, rows_at
from dialog_gen.inspect.statistics import Stats

_REASONS = 40
_EXAMPLES = 4


def rejects(folder: DatasetFolder, stats: Stats, pictures: Pictures, *, seed: int) -> list[dict[str, Any]]:
    """The most frequent reasons of rejection, each with a few examples that are drawn uniformly.

    Raises UsageError for a missing or damaged file of rejects.
    """
    counts = [(count, status, reason) for status, reasons in stats.reasons.items() for reason, count in reasons.items()]
    shown = sorted(counts, key=lambda item: (-item[0], item[1:]))[:_REASONS]
    drawn = {(status, reason): Smallest[Place](_EXAMPLES) for _, status, reason in shown}
    if drawn:
        for place, (image_id, *kind) in places(folder, ["image_id", "status", "reason"], part="rejects"):
            if found := drawn.get((kind[0], kind[1])):
                found.add(hash_64(f"{seed} {image_id}"), place)
    chosen = [place for found in drawn.values() for place in found.items()]
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {kind: [] for kind in drawn}
    for _, row in rows_at(folder, chosen, REJECT_COLUMNS):
        examples[row["status"], row["reason"]].append(example := reject(row))
        pictures.add(example, row)
    return [
        {"status": status, "reason": cut(reason), "count": count, "examples": examples[status, reason]}
        for count, status, reason in shown
    ]
