"""A dialogues dataset that stands in for a real one in a dry run: texts of the usual lengths, without meaning."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from dialog_gen.dataset.record import PAIR_COLUMNS
from dialog_gen.dataset.shard_writer import ShardWriter
from dialog_gen.dataset.writer import open_writer

# Each word is one token of CLIP's tokenizer. With start and end, a caption has 14 tokens and a question with its answer
# 24, the means of CC3M and of LLaVA's short answers.
_WORD_LIST = (
    "man woman dog cat street tree house table water sky grass beach night light city people group white black red "
    "blue green yellow small large old young front side view top background photo image standing sitting holding "
    "looking wearing playing walking near behind under with from about during party wedding garden kitchen lake "
    "mountain river flower car train boat horse bird cake coffee book phone music team game field snow summer winter"
)
_WORDS = tuple(_WORD_LIST.split())
_CAPTION_WORDS, _QUESTION_WORDS, _ANSWER_WORDS = 12, 7, 14
_PAIRS = 3
_QUESTIONS = ("what is the", "what color is", "is there a", "where is the")
_ROWS_PER_SHARD = 1024
_IMAGE_SIDE = 24


@dataclass(frozen=True, slots=True)
class _Unit:
    """A shard of the dataset."""

    name: str
    count: int
    fingerprint: str = "synthetic"
    unused: Mapping[str, int] = field(default_factory=dict[str, int])


def write_synthetic_dialogues(out: Path, rows: int, seed: int = 0) -> None:
    """Writes a dataset of `rows` different small images, each with a caption and three question-answer pairs."""
    rng = random.Random(seed)
    with open_writer(str(out), {"made_by": "synthetic", "seed": seed}) as store:
        for start in range(0, rows, _ROWS_PER_SHARD):
            count = min(_ROWS_PER_SHARD, rows - start)
            writer = ShardWriter(store.staging(), _Unit(f"{start // _ROWS_PER_SHARD:06}", count))
            for index in range(count):
                writer.add(index, _row(start + index, rng), output_tokens=0)
            store.commit(writer.finish())


def synthetic_words() -> Iterator[str]:
    """Yields the words of the texts."""
    yield from _WORDS
    yield from _QUESTIONS


def _row(number: int, rng: random.Random) -> dict[str, Any]:
    data = _image(rng)
    return {
        "image_id": f"synthetic-{number}",
        "image_sha256": sha256(data).hexdigest(),
        "images": [{"bytes": data, "path": f"{number}.png"}],
        "url": None,
        "source_sha256": None,
        "caption": _text(rng, _CAPTION_WORDS),
        "texts": [
            {
                "user": f"{rng.choice(_QUESTIONS)} {_text(rng, _QUESTION_WORDS - 3)}?",
                "assistant": _text(rng, _ANSWER_WORDS),
            }
            for _ in range(_PAIRS)
        ],
        **dict.fromkeys(PAIR_COLUMNS),
        "model": "synthetic",
        "model_revision": None,
        "engine": "synthetic",
        "engine_version": "0",
        "protocol": "synthetic",
        "prompt_sha256": "0",
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_tokens": 1, "seed": number},
        "finish_reasons": ["stop"] * _PAIRS,
        "attempts": 1,
        "created_at": datetime(2025, 1, 1, tzinfo=UTC),
    }


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=words))


def _image(rng: random.Random) -> bytes:
    file = BytesIO()
    pixels = rng.randbytes(3 * _IMAGE_SIDE**2)
    Image.frombytes("RGB", (_IMAGE_SIDE, _IMAGE_SIDE), pixels).save(file, "PNG")
    return file.getvalue()
