"""The dataset card: README.md of a repository on the Hub, made from the data and the notes beside them.

It is a function of these: the same dataset gives the same card. Whatever a model, a web page or a user wrote goes
through `plain`.
"""

from collections.abc import Iterator
from typing import Any

from dialog_gen.core.version import __version__
from dialog_gen.dataset.record import DIALOGUES, REJECTS, SCHEMA_VERSION
from dialog_gen.gates.base import description_of
from dialog_gen.protocols.protocol import Protocol, load_protocol, shipped_protocols
from dialog_gen.publish.card_data import CardData
from dialog_gen.publish.card_header import header, yaml_features
from dialog_gen.publish.columns import COLUMN_NOTES
from dialog_gen.publish.compact import has_images
from dialog_gen.publish.known_models import known_model
from dialog_gen.publish.markdown import plain, rate, table

_TEXT_LIMIT = 400
_LICENCE_LIMIT = 1000


def make_card(data: CardData, repo: str, *, licence: str | None = None) -> str:
    """The card of a dataset in the repository `repo` (USER/NAME); `licence` is the publisher's word for all of it."""
    lines = [
        *header(data, repo, licence),
        "",
        f"# {plain(repo.rpartition('/')[2])}",
        "",
        *_introduction(data),
        *_loading(data, repo),
        *_columns(),
        *_counts(data),
        *_making(data),
        *_gates(data),
        *_images(data),
        *_licences(data, licence),
        *_contamination(data),
        *_examples(data),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _introduction(data: CardData) -> Iterator[str]:
    models = ", ".join(dict.fromkeys(plain(made[0]) for made in data.made_with)) or "no model"
    yield (
        f"Question-answer dialogues about images, held by {models} and made with dialog-gen {__version__}: "
        f"{data.pairs:,} pairs about {data.totals.accepted:,} images. The texts are a model's: nobody checked them "
        "one by one."
    )
    if not has_images(data.config):
        yield ""
        yield "**The images are not part of it**: each row has the URL and the checksums; see below how to fetch them."


def _loading(data: CardData, repo: str) -> Iterator[str]:
    yield from ("", "## Load it", "", "```python", "from datasets import load_dataset", "")
    yield f'rows = load_dataset("{repo}", split="train", streaming=True)'
    yield from ("row = next(iter(rows))", 'row["texts"]  # [{"user": ..., "assistant": ...}, ...]')
    if has_images(data.config):
        yield 'row["images"][0]  # a PIL image'
    if data.gates:
        yield "# the pairs that no gate marks"
        yield 'pairs = zip(row["texts"], row["gates"])'
        yield 'kept = [pair for pair, gates in pairs if not any(gate["marked"] for gate in gates)]'
    yield from ("```", "", "All of it, checked byte by byte:", "", "```bash")
    yield f"dialog-gen pull {repo} --out dialogues"
    if not has_images(data.config):
        yield "dialog-gen rehydrate dialogues --out with-images  # fetches the images and checks each"
    yield "```"


def _columns() -> Iterator[str]:
    yield from ("", "## Columns", "", f"One row an image (version {SCHEMA_VERSION} of the record).", "")
    features = {"default": yaml_features(DIALOGUES), "rejects": yaml_features(REJECTS)}
    rows = {f["name"]: [f"`{f['name']}`", f"`{_type(f)}`", COLUMN_NOTES[f["name"]]] for f in features["default"]}
    yield from table(["Column", "Type", "Holds"], rows.values())
    extra = [f for f in features["rejects"] if f["name"] not in rows]
    yield from ("", "The configuration `rejects` has, in place of the texts and what was found out about them:", "")
    yield from table(
        ["Column", "Type", "Holds"], [[f"`{f['name']}`", f"`{_type(f)}`", COLUMN_NOTES[f["name"]]] for f in extra]
    )


def _type(feature: Any) -> str:
    if isinstance(feature, str):
        return feature
    if isinstance(feature, list):
        return f"{{{', '.join(field['name'] for field in feature)}}}"
    if "list" in feature:
        return f"list of {_type(feature['list'])}"
    return _type(feature.get("struct") or feature["dtype"])


def _counts(data: CardData) -> Iterator[str]:
    found = data.totals
    yield from ("", "## Counts", "")
    rows = [["images given to the model", found.images, ""]]
    rows += [
        [name, count, rate(count, found.images)]
        for name, count in (
            ("accepted", found.accepted),
            ("rejected: no answer of the form asked for", found.rejected),
            ("unreadable images", found.unreadable),
        )
    ]
    yield from table(["", "Images", "Share"], [*rows, ["question-answer pairs", data.pairs, ""]])
    reasons = [
        [plain(status), plain(reason), count]
        for status, counts in found.reasons.items()
        for reason, count in counts.items()
    ]
    if reasons:
        yield from ("", "Nothing was dropped in silence; each loss is in the configuration `rejects`:", "")
        yield from table(["Status", "Reason", "Images"], reasons)


def _making(data: CardData) -> Iterator[str]:
    yield from ("", "## How it was made", "")
    rows = [[*map(plain, made), count] for made, count in sorted(data.made_with.items())]
    yield from table(["Model", "Revision", "Engine", "Version", "Protocol", "Dialogues"], rows)
    keys = ("temperature", "top_p", "max_tokens", "seed", "attempts", "dtype", "deterministic")
    said = [f"{key} {plain(data.config[key])}" for key in keys if data.config.get(key) is not None]
    if said:
        yield from ("", f"Decoding: {', '.join(said)}. Each image has a seed of its own, in the column `sampling`.")
    for name in sorted({made[4] for made in data.made_with}):
        yield from _protocol(name)


def _protocol(name: str) -> Iterator[str]:
    yield ""
    if name not in shipped_protocols():
        yield f"The prompts of the protocol {plain(name)} are its author's; `prompt_sha256` is their hash."
        return
    protocol: Protocol = load_protocol(name)
    yield f"The protocol {plain(name)} as this version has it; `prompt_sha256` is the hash of what was asked:"
    yield ""
    for number, turn in enumerate(protocol.turns, 1):
        yield f"{number}. {plain(turn.user)}"


def _gates(data: CardData) -> Iterator[str]:
    yield from ("", "## Quality gates", "")
    if data.gates is None:
        yield "None went over this dataset."
        return
    found = data.gates
    yield (
        "A gate scores each pair and may mark it (column `gates`); nothing was deleted. "
        f"{found.kept:,} of {found.pairs:,} pairs ({rate(found.kept, found.pairs)}) are unmarked, "
        f"on {found.images_kept:,} images."
    )
    if unseen := data.pairs - found.pairs:
        yield f"The gates did not go over the other {unseen:,} pairs, which have no marks."
    yield ""
    yield from table(
        ["Gate", "Score", "Marked if", "Scored", "Marked", "Rate"],
        [
            [
                *(plain(name), description_of(name), _limits(found.settings.get(name, {}))),
                *(gate.scored, gate.marked, rate(gate.marked, found.pairs)),
            ]
            for name, gate in found.gates.items()
        ],
    )


def _limits(settings: dict[str, Any]) -> str:
    sides = [(key, sign) for key, sign in (("min", "below"), ("max", "above")) if settings.get(key) is not None]
    return " or ".join(f"{sign} {plain(settings[key])}" for key, sign in sides) or "never"


def _images(data: CardData) -> Iterator[str]:
    source = data.images
    yield from ("", "## Images", "")
    if source.manifest:
        yield (
            f"{plain(source.manifest)}: {plain(source.description or '')}. {plain(source.homepage or '')}".rstrip(". ")
            + "."
        )
    else:
        yield "Where they come from was not recorded; `url` says it of each image, where it is known."
    if rot := source.link_rot:
        yield ""
        yield (
            f"Link rot: of {rot.urls:,} different URLs {rate(rot.success_rate)} gave an image that was kept, "
            f"{rate(rot.alive)} still led to one. {rot.opted_out:,} opted out of such use (X-Robots-Tag) and were left "
            "alone."
        )
        yield ""
        yield from table(["Outcome", "URLs"], [[plain(name), count] for name, count in rot.outcomes.items()])


def _licences(data: CardData, licence: str | None) -> Iterator[str]:
    yield from ("", "## Licence", "")
    yield f"- Of this dataset, says who published it: {plain(licence or 'nothing said', limit=_LICENCE_LIMIT)}."
    images = data.images.licence or "not recorded; images of the web belong to their owners"
    yield f"- Of the images and captions: {plain(images, limit=_LICENCE_LIMIT)}."
    names = dict.fromkeys(made[0] for made in data.made_with)
    for terms in dict.fromkeys(_terms(name) for name in names):
        yield f"- Of the texts: {terms}"


def _terms(model: str) -> str:
    family = known_model(model)
    return family.terms if family else f"the terms of {plain(model)} apply; nothing is recorded about them here."


def _contamination(data: CardData) -> Iterator[str]:
    yield from ("", "## Known contamination", "")
    for name in dict.fromkeys(made[0] for made in data.made_with):
        family = known_model(name)
        yield "- " + (
            family.trained_on
            if family
            else f"Nothing is recorded about what {plain(name)} was trained on: assume that it saw public benchmarks."
        )


def _examples(data: CardData) -> Iterator[str]:
    yield from ("", "## Examples", "")
    if not data.examples:
        yield "There is no dialogue to show."
    for number, example in enumerate(data.examples, 1):
        yield f"**{number}.** Caption of the source: {plain(example['caption'] or 'none', limit=_TEXT_LIMIT)}"
        yield ""
        for pair in example["pairs"]:
            yield f"- {plain(pair['user'], limit=_TEXT_LIMIT)} — *{plain(pair['assistant'], limit=_TEXT_LIMIT)}*"
        yield ""
