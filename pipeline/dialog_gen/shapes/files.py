"""Writes a subset of the world as files: VQAv1 questions and annotations, COCO captions, class labels, scene graphs.

An image has two ids. `ShapesSubset.image_id` is the id that the pipeline gives an image in img2dataset's tars, such as
"00000/000000012"; `truth.jsonl` uses it. In the captions file, `file_name` is this id followed by ".jpg", so that
evaluation finds the image. VQAv1 and COCO need integers, so their files use the scene's index: as `image_id`, and as
`id` in the `images` of the captions file.

Classification uses the images with exactly one large object. Its color and shape are the class, which gives 24 classes.
The class "red circle" is described as "large red circle", which matches no other object of the scene.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialog_gen.core.files import replacing
from dialog_gen.shapes.language import ANSWERS, CLASS_TEMPLATES, QUESTION_KINDS, Question, ask, retrieval_captions
from dialog_gen.shapes.render import IMAGE_SIZE_PX
from dialog_gen.shapes.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZES, Scene, Split, draw_scene

QUESTIONS_PER_IMAGE = 3
CAPTIONS_PER_IMAGE = 5
CHOICES = 18
ANNOTATORS = 10

_SLIP_RATE = 0.05
# At most this many of the ten annotators err, so the true answer always has the strict majority.
_MAX_SLIPS = (ANNOTATORS - 1) // 2
_CONFIDENCES = {"yes": 80, "maybe": 15, "no": 5}
# Groups of answers that annotators confuse with one another.
_ANSWER_GROUPS = (
    ("yes", "no"),
    tuple(a for a in ANSWERS if a.isdigit()),
    *(COLORS, SHAPES, POSITIONS, SIZES, BACKGROUNDS),
)
_LICENSE = {"name": "Apache License 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesSubset:
    """The scenes 0 to `limit` - 1 of a split for one seed, with `shard_size` images per tar."""

    split: Split
    seed: int
    limit: int
    shard_size: int

    def scene(self, index: int) -> Scene:
        """Scene number `index`."""
        return draw_scene(self.split, self.seed, index)

    def url(self, index: int) -> str:
        """A URL for image number `index` that does not depend on the server's port."""
        return f"shapes://{self.split}/{self.seed}/{index}"

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
    """Writes `out`/truth.jsonl, vqa/, retrieval/ and classification/. The same subset gives the same bytes.

    Only `dialog_gen.shapes.truth` reads `truth.jsonl`; the pipeline never does. Only one scene is in memory at a time,
    and each file becomes visible when it is complete.

    Raises OSError if a file cannot be written.
    """
    with replacing(out / "truth.jsonl") as part, part.open("w", encoding="utf-8") as file:
        for index in range(subset.limit):
            record = {"image_id": subset.image_id(index), "index": index, "scene": subset.scene(index).to_json()}
            file.write(json.dumps(record) + "\n")

    info = {"description": "shapes, the world embedded in dialog-gen", "version": "1.0", "seed": subset.seed}
    head = {"info": info, "data_type": "shapes", "data_subtype": subset.split, "license": _LICENSE}
    for prefix, task in (("OpenEnded", "Open-Ended"), ("MultipleChoice", "Multiple-Choice")):
        questions = _questions(subset, multiple_choice=prefix == "MultipleChoice")
        path = out / "vqa" / f"{prefix}_shapes_{subset.split}_questions.json"
        _write_json(path, {**head, "task_type": task, "questions": questions})
    path = out / "vqa" / f"shapes_{subset.split}_annotations.json"
    _write_json(path, {**head, "annotations": _annotations(subset)})

    path = out / "retrieval" / f"captions_shapes_{subset.split}.json"
    licenses = [{"id": 1, **_LICENSE}]
    _write_json(path, {"info": info, "licenses": licenses, "images": _images(subset), "annotations": _captions(subset)})

    folder = out / "classification"
    _write_json(folder / f"labels_shapes_{subset.split}.json", _labels(subset))
    classes = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    _write_lines(folder / "classes.txt", [f"{name}\tlarge {name}" for name in classes])
    _write_lines(folder / "templates.txt", CLASS_TEMPLATES)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


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
        questions = ask(subset.scene(index), subset.rng("questions", index), QUESTIONS_PER_IMAGE)
        for number, question in enumerate(questions):
            yield index, index * 10 + number, question


def _questions(subset: ShapesSubset, *, multiple_choice: bool) -> Iterator[dict[str, Any]]:
    for index, question_id, question in _asked(subset):
        record: dict[str, Any] = {"image_id": index, "question": question.question, "question_id": question_id}
        if multiple_choice:
            record["multiple_choices"] = _choices(question.answer, subset.rng("choices", question_id))
        yield record


def _annotations(subset: ShapesSubset) -> Iterator[dict[str, Any]]:
    for index, question_id, question in _asked(subset):
        kind = QUESTION_KINDS[question.kind]
        yield {
            "question_id": question_id,
            "image_id": index,
            "question_type": kind.vqa_type,
            "answer_type": kind.answer_type,
            "multiple_choice_answer": question.answer,
            "answers": _human_answers(question.answer, subset.rng("answers", question_id)),
        }


def _images(subset: ShapesSubset) -> Iterator[dict[str, Any]]:
    for index in range(subset.limit):
        yield {
            "id": index,
            "file_name": f"{subset.image_id(index)}.jpg",
            "height": IMAGE_SIZE_PX,
            "width": IMAGE_SIZE_PX,
            "coco_url": subset.url(index),
            "license": 1,
        }


def _captions(subset: ShapesSubset) -> Iterator[dict[str, Any]]:
    for index in range(subset.limit):
        captions = retrieval_captions(subset.scene(index), subset.rng("retrieval", index), CAPTIONS_PER_IMAGE)
        for number, caption in enumerate(captions):
            yield {"id": index * CAPTIONS_PER_IMAGE + number, "image_id": index, "caption": caption}


def _labels(subset: ShapesSubset) -> Iterator[tuple[str, str]]:
    """Image id and class of the images that have a class."""
    for index in range(subset.limit):
        large = [o for o in subset.scene(index).objects if o.size == "large"]
        if len(large) == 1:
            yield subset.image_id(index), f"{large[0].color} {large[0].shape}"


def _confusable(answer: str) -> list[str]:
    """The other answers of the same kind."""
    group = next(group for group in _ANSWER_GROUPS if answer in group)
    return [other for other in group if other != answer]


def _choices(truth: str, rng: random.Random) -> list[str]:
    near = [truth, *_confusable(truth)]
    far = rng.sample([a for a in ANSWERS if a not in near], CHOICES - len(near))
    return rng.sample([*near, *far], CHOICES)


def _human_answers(truth: str, rng: random.Random) -> list[dict[str, Any]]:
    slips = min(_MAX_SLIPS, sum(rng.random() < _SLIP_RATE for _ in range(ANNOTATORS)))
    answers = [truth] * (ANNOTATORS - slips) + rng.choices(_confusable(truth), k=slips)
    confidences = rng.choices(list(_CONFIDENCES), list(_CONFIDENCES.values()), k=ANNOTATORS)
    return [
        {"answer": answer, "answer_confidence": confidence, "answer_id": number}
        for number, (answer, confidence) in enumerate(zip(rng.sample(answers, ANNOTATORS), confidences, strict=True), 1)
    ]
