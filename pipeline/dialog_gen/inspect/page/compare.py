"""Two datasets on the same images, side by side.

An image of one dataset is the same as one of the other if its bytes are equal or, where no bytes are, its id is. Memory
does not grow with the datasets: of the images of the first, at most 65,536 are looked for in the second.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dialog_gen.core.hashing import hash_64
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress
from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.inspect.page.pictures import Pictures
from dialog_gen.inspect.page.telling import DIALOGUE_COLUMNS, REJECT_COLUMNS, cut, dialogue, reject
from dialog_gen.inspect.sampling import Place, Smallest, places, rows_at
from dialog_gen.inspect.statistics import plain
from dialog_gen.inspect.verdict import share

_LOOKED_FOR = 1 << 16
_PARTS = {"data": DIALOGUE_COLUMNS, "rejects": REJECT_COLUMNS}

OTHER_BYTES, OTHER_ID, SAME = 1, 2, 3
"""How well two images match: by id alone, by bytes alone, by both."""


@dataclass(slots=True)
class _Match:
    """An image of the first dataset, and where the second has it, if it does."""

    sha256: str
    parts: list[str]
    places: list[Place]
    kind: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The images that two datasets have both, as rows of the gallery, and what the comparison says."""

    rows: list[dict[str, Any]]
    told: dict[str, Any]
    shared: int
    """Images of both datasets that were found, with a dialogue in at least one of them."""


def compare(
    folders: Sequence[DatasetFolder],
    gates: Sequence[list[str]],
    pictures: Pictures,
    *,
    samples: int,
    seed: int,
    most_chars: int,
    on_progress: OnProgress,
) -> Comparison:
    """Compares two datasets; draws `samples` of the images that both have and one has a dialogue about.

    `gates` are the names of the gates whose scores are shown, of each dataset. Raises UsageError for a missing or
    damaged file.
    """
    matches, all_of_first, only_second = _matches(folders, seed)
    found = [match for match in matches if match.kind]
    with_dialogue = [match for match in found if "data" in match.parts]
    # In the order of the first dataset, its rejects last.
    shown = sorted(with_dialogue[:samples], key=lambda match: (match.parts[0], match.places[0][:3]))
    rows = _rows(folders, gates, shown, pictures, most_chars, on_progress)
    kinds = Counter(match.kind for match in found)
    told = {
        "looked_for": len(matches),
        "all_of_first": all_of_first,
        "found": len(found),
        "same": kinds[SAME],
        "other_id": kinds[OTHER_ID],
        "other_bytes": kinds[OTHER_BYTES],
        "only_second": only_second if all_of_first else None,
        "only_with_dialogue": [sum(match.parts == parts for match in found) for parts in _ONE_SIDED],
        **agreement(rows),
        "settings": _differing(*(folder.config() for folder in folders)),
    }
    return Comparison(rows=rows, told=told, shared=len(with_dialogue))


_ONE_SIDED = (["data", "rejects"], ["rejects", "data"])


def comparison_line(told: Mapping[str, Any], kept: Sequence[tuple[int, int]]) -> str:
    """The verdict of a comparison in words. `kept` are the kept pairs and the scored pairs of each side."""
    if not told["found"]:
        return "These datasets have no image in common: their figures can be compared, their dialogues cannot."
    are = "is" if told["found"] == 1 else "are"
    drawn = "" if told["all_of_first"] else ", drawn at random,"
    shared = f"{told['found']:,} of {count_of(told['looked_for'], 'image', grouped=True)} of A{drawn} {are} in B too"
    asked, same = told["asked_by_both"], told["answered_alike"]
    answers = (
        f"where both ask the same question, they agree on {share(same, asked)} of "
        f"{count_of(asked, 'answer', grouped=True)}"
        if asked
        else "they never ask the same question about an image"
    )
    line = f"{shared}; {answers}."
    if all(scored for _, scored in kept):
        first, second = (share(part, whole) for part, whole in kept)
        line += f" Gates keep {first} of the pairs of A, {second} of B."
    return line


def aligned(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[list[int | None]]:
    """Pairs of the same question, as `[place in first, place in second]`; None where a side does not ask it.

    The order is that of the first side; what only the second asks comes last.
    """
    waiting: defaultdict[str, list[int]] = defaultdict(list)
    for place, pair in reversed(list(enumerate(second))):
        waiting[plain(pair["user"])].append(place)
    lines: list[list[int | None]] = []
    for place, pair in enumerate(first):
        same = waiting[plain(pair["user"])]
        lines.append([place, same.pop() if same else None])
    return lines + [[None, place] for place in sorted(place for places in waiting.values() for place in places)]


def agreement(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many pairs of the rows are about the same question, and how many of these have the same answer."""
    both = [
        [side["pairs"][place] for side, place in zip(row["sides"], line, strict=True)]
        for row in rows
        for line in row["lines"]
        if None not in line
    ]
    alike = sum(plain(first["assistant"]) == plain(second["assistant"]) for first, second in both)
    return {"asked_by_both": len(both), "answered_alike": alike}


def _matches(folders: Sequence[DatasetFolder], seed: int) -> tuple[list[_Match], bool, int]:
    """Images of the first dataset in random order; whether they are all; images of the second that none of them is."""
    drawn, count = Smallest[tuple[str, _Match]](_LOOKED_FOR), 0
    for part in _PARTS:
        for place, (image_id, sha256) in places(folders[0], ["image_id", "image_sha256"], part=part):
            count += 1
            drawn.add(hash_64(f"{seed} {image_id}"), (image_id, _Match(sha256, [part], [place])))
    looked_for = drawn.items()
    by_id = dict(looked_for)
    by_sha256: defaultdict[str, list[_Match]] = defaultdict(list)
    for _, match in looked_for:
        by_sha256[match.sha256].append(match)
    only_second = 0
    for part in _PARTS:
        for place, (image_id, sha256) in places(folders[1], ["image_id", "image_sha256"], part=part):
            same_id = by_id.get(image_id)
            same_bytes = by_sha256.get(sha256, [])
            only_second += same_id is None and not same_bytes
            for match in same_bytes:
                _improve(match, SAME if match is same_id else OTHER_ID, part, place)
            if same_id and same_id.sha256 != sha256:
                _improve(same_id, OTHER_BYTES, part, place)
    return [match for _, match in looked_for], count <= _LOOKED_FOR, only_second


def _improve(match: _Match, kind: int, part: str, place: Place) -> None:
    if kind > match.kind:
        match.kind, match.parts[1:], match.places[1:] = kind, [part], [place]


def _rows(
    folders: Sequence[DatasetFolder],
    gates: Sequence[list[str]],
    matches: Sequence[_Match],
    pictures: Pictures,
    most_chars: int,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """The rows of the gallery. An image is shown once, or twice if its bytes differ."""
    drawn = 0
    rows: list[dict[str, Any]] = [{"kind": match.kind, "sides": [{}, {}], "images": []} for match in matches]
    for side, folder in enumerate(folders):
        for part, columns in _PARTS.items():
            at: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
            chosen: dict[tuple[int, int, int], Place] = {}
            for number, match in enumerate(matches):
                if match.parts[side] == part:
                    at[match.places[side][:3]].append(number)
                    chosen[match.places[side][:3]] = match.places[side]
            for place, row in rows_at(folder, chosen.values(), columns):
                for number in at[place[:3]]:
                    told = dialogue(row, gates[side], most_chars=most_chars) if part == "data" else reject(row)
                    rows[number]["sides"][side] = {"pairs": [], **told}
                    if side == 0:
                        pictures.add(rows[number], row)
                        drawn += 1
                        on_progress("drawing images", drawn, len(rows), "images")
                    elif rows[number]["kind"] == OTHER_BYTES:
                        pictures.add(rows[number]["sides"][1], row)
    for row in rows:
        row["lines"] = aligned(*(side["pairs"] for side in row["sides"]))
    return rows


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[list[Any]]:
    """`[setting, value in the first, value in the second]` for the settings that differ; no paths."""
    names = [name for name in {**first, **second} if name != "images" and first.get(name) != second.get(name)]
    return [cut([name, first.get(name), second.get(name)]) for name in names]
