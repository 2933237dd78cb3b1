"""LLaVA's training format (docs/Finetune_Custom_Data.md in haotian-liu/LLaVA)."""

import json
from pathlib import Path

from dialog_gen.publish.formats.base import FORMATS, Sample, SampleWriter

_SAMPLES_PER_FOLDER = 1000


@FORMATS.register("llava")
class LlavaWriter(SampleWriter):
    """OUT/llava.json, one JSON list, and OUT/images, LLaVA's `--image_folder`, with a thousand samples per subfolder.

    Of a sample with several images, "image" is the list of their paths, as LLaVA-NeXT and LLaVA-OneVision read it.
    """

    description = "OUT/llava.json, a training file of LLaVA, and OUT/images, its image folder"

    def __init__(self, out: Path) -> None:
        self._images = out / "images"
        self._images.mkdir()
        self._json = (out / "llava.json").open("w", encoding="utf-8")
        self._count = 0

    def add(self, sample: Sample) -> None:
        """Writes the images and appends the conversation to the list."""
        folder = f"{self._count // _SAMPLES_PER_FOLDER:05d}"
        (self._images / folder).mkdir(exist_ok=True)
        paths: list[str] = []
        for name, data in sample.files:
            paths.append(f"{folder}/{name}")
            (self._images / paths[-1]).write_bytes(data)
        turns: list[dict[str, str]] = []
        for pair in sample.pairs:
            turns.append({"from": "human", "value": _without_image_token(pair["user"])})
            turns.append({"from": "gpt", "value": _without_image_token(pair["assistant"])})
        turns[0]["value"] = "<image>\n" * len(paths) + turns[0]["value"]
        item = {"id": sample.image_id, "image": paths[0] if len(paths) == 1 else paths, "conversations": turns}
        self._json.write((",\n" if self._count else "[\n") + json.dumps(item, ensure_ascii=False))
        self._count += 1

    def close(self) -> None:
        """Completes the JSON list."""
        self._json.write("\n]\n" if self._count else "[]\n")
        self._json.close()


def _without_image_token(text: str) -> str:
    """The text without `<image>`, even if a model wrote it: LLaVA would replace each of them by an image."""
    return text.replace("<image>", "image")
