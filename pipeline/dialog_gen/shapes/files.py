"""Writes a subset of the world as files: VQAv1 questions and annotations, COCO captions, class labels, choices, scenes.

An image has two ids. `ShapesSubset.image_id` is the id that the pipeline gives an image in img2dataset's tars, such as
"00000/000000012"; `truth.jsonl` uses it. In the captions file, `file_name` is this id followed by ".jpg", so that
evaluation finds the image. VQAv1 and COCO need integers, so their files use the scene's index: as `image_id`, and as
`id` in the `images` of the captions file.

`retrieval/descriptions_*` has a text about each image, often longer than the world's CLIP reads, in DOCCI's form.

The second world has another captions file, `negated_captions_*`, and in place of the published formats in `choices/` a
list of {"image_id", "captions", "kind"}: the pipeline's id of an image, the right caption before the wrong ones, and
what they test.

Classification uses the images with exactly one large object. Its color and shape are the class. The class "red circle"
is described as "large red circle", which matches no other object of the scene.
"""

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dialog_gen.core.files import replacing
from dialog_gen.shapes.questions import Question
from dialog_gen.shapes.worlds import FIRST, World

ANNOTATIONS = ("truth.jsonl", "vqa", "retrieval", "classification", "choices")
"""The names in the output folder of what `write_files` writes."""
QUESTIONS_PER_IMAGE = 3
CAPTIONS_PER_IMAGE = 5
CHOICES = 18
ANNOTATORS = 10

_SLIP_RATE = 0.05
# At most this many of the ten annotators err, so the true answer always has the strict majority.
_MAX_SLIPS = (ANNOTATORS - 1) // 2
_CONFIDENCES = {"yes": 80, "maybe": 15, "no": 5}
_LICENSE = {"name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}


@lru_cache(maxsize=1 << 12)
def _scene(draw_scene: Callable[[str, int, int], Any], split: str, seed: int, index: int) -> Any:
    """A scene. Every file needs it again, and it takes many draws until it belongs to its split."""
    return draw_scene(split, seed, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesSubset:
    """The scenes 0 to `limit` - 1 of a split for one seed, with `shard_size` images per tar."""

    split: str
    seed: int
    limit: int
    shard_size: int
    world: World[Any] = FIRST

    def scene(self, index: int) -> Any:
        """Scene number `index`."""
        return _scene(self.world.draw_scene, self.split, self.seed, index)

    def caption(self, index: int) -> str:
        """The alt text of image number `index`."""
        return self.world.web_caption(self.scene(index), self.rng("web", index))

    def url(self, index: int) -> str:
        """A URL for image number `index` that does not depend on the server's port."""
        return f"{self.world.name}://{self.split}/{self.seed}/{index}"

    def rng(self, purpose: str, index: int) -> random.Random:
        """A random generator for one purpose and one scene."""
        return random.Random(f"{purpose}/{self.split}/{self.seed}/{index}")

    def shards(self) -> dict[str, range]:
        """Name of a tar without extension -> indices of its scenes."""
        starts = range(0, self.limit, self.shard_size)
        return {f"{n:05d}": range(s, min(s + self.shard_size, self.limit)) for n, s in enumerate(starts)}

    def image_id(self, index: int) -> str:
        """The pipeline's id of an image: the tar's name, a slash, and img2dataset's key (shard number, then place)."""
        shard, within = divmod(index, self.shard_size)
        digits = math.ceil(math.log10(self.shard_size))
        return f"{shard:05d}/{shard * 10**digits + within:0{digits + 5}d}"


def write_files(out: Path, subset: ShapesSubset) -> None:
    """Writes `out`/truth.jsonl, vqa/, retrieval/, classification/ and choices/. The same subset gives the same bytes.

    Only `dialog_gen.shapes.truth` reads `truth.jsonl`; the pipeline never does. Only some scenes are in memory,
    and each file becomes visible when it is complete.

    Raises OSError if a file cannot be written.
    """
    with replacing(out / "truth.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for index in range(subset.limit):
            record = {"image_id": subset.image_id(index), "index": index, "scene": subset.scene(index).to_json()}
            # The first world's records name no world: they are older than the second.
            named = {} if subset.world.name == FIRST.name else {"world": subset.world.name}
            file.write(json.dumps({**record, **named}) + "\n")

    world, split = subset.world, subset.split
    name = f"{world.name}_{split}"
    info = {"description": f"{world.name}, the world embedded in dialog-gen", "version": "1.0", "seed": subset.seed}
    head = {"info": info, "data_type": world.name, "data_subtype": split, "license": _LICENSE}
    for prefix, task in (("OpenEnded", "Open-Ended"), ("MultipleChoice", "Multiple-Choice")):
        questions = _questions(subset, multiple_choice=prefix == "MultipleChoice")
        path = out / "vqa" / f"{prefix}_{name}_questions.json"
        _write_json(path, {**head, "task_type": task, "questions": questions})
    _write_json(out / "vqa" / f"{name}_annotations.json", {**head, "annotations": _annotations(subset)})

    licenses = [{"id": 1, **_LICENSE}]
    for prefix, captions_of in (("captions", world.retrieval_captions), ("negated_captions", world.negated_captions)):
        if captions_of is not None:
            captions = _captions(subset, captions_of)
            path = out / "retrieval" / f"{prefix}_{name}.json"
            _write_json(path, {"info": info, "licenses": licenses, "images": _images(subset), "annotations": captions})
    _write_lines(out / "retrieval" / f"descriptions_{name}.jsonlines", map(json.dumps, _descriptions(subset)))

    folder = out / "classification"
    _write_json(folder / f"labels_{name}.json", _labels(subset))
    _write_lines(folder / "classes.txt", [f"{of_world}\tlarge {of_world}" for of_world in world.classes])
    _write_lines(folder / "templates.txt", world.class_templates)
    for file_name, content in world.choice_files(subset):
        if isinstance(content, bytes):
            with replacing(out / "choices" / file_name) as part:
                part.write_bytes(content)
        else:
            _write_lines(out / "choices" / file_name, content)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _write_json(path: Path, fields: dict[str, Any] | Iterator[tuple[str, Any]]) -> None:
    """Writes a JSON object of these names and values. Iterators become lists, with one item per line."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write("{")
        for number, (name, value) in enumerate(fields.items() if isinstance(fields, dict) else fields):
            file.write((",\n" if number else "") + json.dumps(name) + ": ")
            if not isinstance(value, Iterator):
                file.write(json.dumps(value))
                continue
            file.write("[")
            for position, item in enumerate(value):
                file.write((",\n" if position else "\n") + json.dumps(item))
            file.write("\n]")
        file.write("}\n")


def _asked(subset: ShapesSubset) -> Iterator[tuple[int, int, Question]]:
    """Scene index, question id and question. As in VQAv1, the question id is the image id with one more digit."""
    for index in range(subset.limit):
        questions = subset.world.ask(subset.scene(index), subset.rng("questions", index), QUESTIONS_PER_IMAGE)
        for number, question in enumerate(questions):
            yield index, index * 10 + number, question


def _questions(subset: ShapesSubset, *, multiple_choice: bool) -> Iterator[dict[str, Any]]:
    for index, question_id, question in _asked(subset):
        record: dict[str, Any] = {"image_id": index, "question": question.question, "question_id": question_id}
        if multiple_choice:
            record["multiple_choices"] = _answers(subset.world, question.answer, subset.rng("choices", question_id))
        yield record


def _annotations(subset: ShapesSubset) -> Iterator[dict[str, Any]]:
    for index, question_id, question in _asked(subset):
        kind = subset.world.question_kinds[question.kind]
        yield {
            "question_id": question_id,
            "image_id": index,
            "question_type": kind.vqa_type,
            "answer_type": kind.answer_type,
            "multiple_choice_answer": question.answer,
            "answers": _human_answers(subset.world, question.answer, subset.rng("answers", question_id)),
        }


def _images(subset: ShapesSubset) -> Iterator[dict[str, Any]]:
    for index in range(subset.limit):
        yield {
            "id": index,
            "file_name": f"{subset.image_id(index)}.jpg",
            "height": subset.world.image_size_px,
            "width": subset.world.image_size_px,
            "coco_url": subset.url(index),
            "license": 1,
        }


def _captions(
    subset: ShapesSubset, captions_of: Callable[[Any, random.Random, int], list[str]]
) -> Iterator[dict[str, Any]]:
    for index in range(subset.limit):
        captions = captions_of(subset.scene(index), subset.rng("retrieval", index), CAPTIONS_PER_IMAGE)
        for number, caption in enumerate(captions):
            yield {"id": index * CAPTIONS_PER_IMAGE + number, "image_id": index, "caption": caption}


def _descriptions(subset: ShapesSubset) -> Iterator[dict[str, str]]:
    """A long text about each image, in the form of DOCCI (arXiv 2404.19753)."""
    for index in range(subset.limit):
        text = subset.world.description(subset.scene(index), subset.rng("description", index))
        yield {"image_file": f"{subset.image_id(index)}.jpg", "description": text, "split": subset.split}


def _labels(subset: ShapesSubset) -> Iterator[tuple[str, str]]:
    """Image id and class of the images that have a class."""
    for index in range(subset.limit):
        if name := subset.world.class_of(subset.scene(index)):
            yield subset.image_id(index), name


def _confusable(world: World[Any], answer: str) -> list[str]:
    """The other answers of the same kind, which annotators confuse with it."""
    group = next(group for group in world.answer_groups if answer in group)
    return [other for other in group if other != answer]


def _answers(world: World[Any], truth: str, rng: random.Random) -> list[str]:
    """The true answer among others: all of its kind, and some of other kinds."""
    near = [truth, *_confusable(world, truth)]
    far = rng.sample([a for a in world.answers if a not in near], CHOICES - len(near))
    return rng.sample([*near, *far], CHOICES)


def _human_answers(world: World[Any], truth: str, rng: random.Random) -> list[dict[str, Any]]:
    slips = min(_MAX_SLIPS, sum(rng.random() < _SLIP_RATE for _ in range(ANNOTATORS)))
    answers = [truth] * (ANNOTATORS - slips) + rng.choices(_confusable(world, truth), k=slips)
    confidences = rng.choices(list(_CONFIDENCES), list(_CONFIDENCES.values()), k=ANNOTATORS)
    return [
        {"answer": answer, "answer_confidence": confidence, "answer_id": number}
        for number, (answer, confidence) in enumerate(zip(rng.sample(answers, ANNOTATORS), confidences, strict=True), 1)
    ]
