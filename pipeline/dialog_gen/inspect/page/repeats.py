"""Images that occur several times in a dataset, for the page."""

import heapq
from dataclasses import dataclass, field
from typing import Any

from dialog_gen.core.hashing import hash_64
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.inspect.page.pictures import Pictures
from dialog_gen.inspect.page.telling import DIALOGUE_COLUMNS, dialogue
from dialog_gen.inspect.sampling import Place, places, rows_at

_COMPARED = 1 << 15
_GROUPS = 12
_COPIES = 3


@dataclass(slots=True)
class _Group:
    count: int = 0
    shown: list[Place] = field(default_factory=list[Place])


def repeats(folder: DatasetFolder, gates: list[str], pictures: Pictures) -> list[dict[str, Any]]:
    """The images that occur most often, each with the dialogues of its first few copies.

    Of a dataset of more than 32,768 different images, only so many of them, drawn at random, are compared. Raises
    UsageError for a missing or damaged file.
    """
    groups: dict[int, _Group] = {}
    limit = 1 << 64
    for place, (sha256,) in places(folder, ["image_sha256"]):
        key = hash_64(sha256)
        if key < limit:
            group = groups.setdefault(key, _Group())
            group.count += 1
            if len(group.shown) < _COPIES:
                group.shown.append(place)
            if len(groups) > 2 * _COMPARED:
                groups = {kept: groups[kept] for kept in heapq.nsmallest(_COMPARED, groups)}
                limit = max(groups) + 1
    several = [group for group in groups.values() if group.count > 1]
    chosen = sorted(several, key=lambda group: (-group.count, group.shown[0][:3]))[:_GROUPS]
    wanted = [place for group in chosen for place in group.shown]
    rows = {place[:3]: row for place, row in rows_at(folder, wanted, DIALOGUE_COLUMNS)}
    told: list[dict[str, Any]] = []
    for group in chosen:
        copies = [rows[place[:3]] for place in group.shown]
        told.append({"count": group.count, "copies": [dialogue(row, gates) for row in copies]})
        pictures.add(told[-1], copies[0])
    return told
