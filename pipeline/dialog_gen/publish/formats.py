"""Export formats, one writer each.

llava       OUT/llava.json, a training file of LLaVA (docs/Finetune_Custom_Data.md in haotian-liu/LLaVA),
            and OUT/images, which is its `--image_folder`
messages    OUT/*.parquet with `images` and `messages`: a list of {role, content}
texts       OUT/*.parquet with `images` and `texts`: a list of {user, assistant}, as in The Cauldron and FineVision
webdataset  OUT/*.tar with KEY.jpg (or what the image is), KEY.json and, where there is a caption, KEY.txt, laid out as
            img2dataset lays it out
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.record import IMAGE_TYPE, PAIR_TYPE, hub_schema
from dialog_gen.dataset.writer import ROWS_A_GROUP
from dialog_gen.sources.images import FORMATS as IMAGE_FORMATS

Format = Literal["llava", "messages", "texts", "webdataset"]

_IMAGES_A_FOLDER = 1000
_SAMPLES_A_TAR = 1000
_PARQUET_BYTES = 500 * 10**6
_GROUP_BYTES = 200 << 20
_NAME_LENGTH = 80
_HASH_LENGTH = 12
_MESSAGE_TYPE = pa.struct([("role", pa.string()), ("content", pa.string())])
# MPO is what many phones write: a JPEG with another behind it.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image with its dialogue."""

    image_id: str
    image: bytes
    image_sha256: str
    source_sha256: str | None
    url: str | None
    caption: str | None
    pairs: list[dict[str, str]]

    @property
    def name(self) -> str:
        """A file name without extension: a to z, digits, "_" and "-" only, another one for each id.

        It differs from all others also where upper and lower case count as the same.
        """
        plain = re.sub(r"[^a-z0-9_-]+", "_", self.image_id.lower())[:_NAME_LENGTH]
        if plain == self.image_id and plain and not re.search(rf"-[0-9a-f]{{{_HASH_LENGTH}}}$", plain):
            return plain
        return f"{plain}-{hashlib.sha256(self.image_id.encode()).hexdigest()[:_HASH_LENGTH]}"

    @property
    def extension(self) -> str:
        """By content, whatever the image was called. Raises UsageError for what is no image."""
        try:
            with Image.open(BytesIO(self.image), formats=IMAGE_FORMATS) as image:
                return _EXTENSIONS.get(image.format or "", (image.format or "").lower())
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise UsageError(f"image {self.image_id!r} cannot be exported, it is no image: {error}.") from None


class Writer(Protocol):
    """Takes samples one after another."""

    def add(self, sample: Sample) -> None:
        """Writes a sample."""

    def close(self) -> None:
        """Writes what belongs at the end."""


class LlavaWriter:
    """One JSON list of samples, and a folder of images, a thousand a subfolder."""

    def __init__(self, out: Path) -> None:
        self._images = out / "images"
        self._images.mkdir()
        self._json = (out / "llava.json").open("w", encoding="utf-8")
        self._count = 0

    def add(self, sample: Sample) -> None:
        """Writes a sample."""
        path = f"{self._count // _IMAGES_A_FOLDER:05d}/{sample.name}.{sample.extension}"
        file = self._images / path
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(sample.image)
        turns: list[dict[str, str]] = []
        for pair in sample.pairs:
            turns.append({"from": "human", "value": _without_image_token(pair["user"])})
            turns.append({"from": "gpt", "value": _without_image_token(pair["assistant"])})
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        item = {"id": sample.image_id, "image": path, "conversations": turns}
        self._json.write((",\n" if self._count else "[\n") + json.dumps(item, ensure_ascii=False))
        self._count += 1

    def close(self) -> None:
        """Ends the list."""
        self._json.write("\n]\n" if self._count else "[]\n")
        self._json.close()


def _without_image_token(text: str) -> str:
    """LLaVA puts an image in the place of each token, whoever wrote it."""
    return text.replace("<image>", "image")


class ParquetWriter:
    """Files of about 500 MB, in row groups that the Hub's viewer can show."""

    def __init__(self, out: Path, column: Literal["messages", "texts"]) -> None:
        self._out, self._column = out, column
        kind = _MESSAGE_TYPE if column == "messages" else PAIR_TYPE
        self._schema = hub_schema([pa.field("images", pa.list_(IMAGE_TYPE)), pa.field(column, pa.list_(kind))])
        self._rows: list[dict[str, Any]] = []
        self._rows_bytes, self._file_bytes, self._files = 0, 0, 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, sample: Sample) -> None:
        """Writes a sample."""
        image = {"bytes": sample.image, "path": f"{sample.name}.{sample.extension}"}
        dialogue = messages_of(sample) if self._column == "messages" else sample.pairs
        self._rows.append({"images": [image], self._column: dialogue})
        self._rows_bytes += len(sample.image)
        if len(self._rows) == ROWS_A_GROUP or self._rows_bytes > _GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Writes the last rows."""
        if self._rows:
            self._flush()
        if self._writer:
            self._writer.close()

    def _flush(self) -> None:
        if self._writer and self._file_bytes + self._rows_bytes > _PARQUET_BYTES:
            self._writer.close()
            self._writer, self._file_bytes = None, 0
        if self._writer is None:
            path = self._out / f"{self._files:05d}.parquet"
            self._writer = pq.ParquetWriter(
                path, self._schema, compression="zstd", use_dictionary=False, write_page_index=True
            )
            self._files += 1
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._file_bytes += self._rows_bytes
        self._rows, self._rows_bytes = [], 0


def messages_of(sample: Sample) -> list[dict[str, str]]:
    """The dialogue as chat messages."""
    roles = (("user", "user"), ("assistant", "assistant"))
    return [{"role": role, "content": pair[key]} for pair in sample.pairs for role, key in roles]


class WebdatasetWriter:
    """Tars of a thousand samples; the same samples give the same bytes."""

    def __init__(self, out: Path) -> None:
        self._out, self._count = out, 0
        self._tar: tarfile.TarFile | None = None

    def add(self, sample: Sample) -> None:
        """Writes a sample."""
        if self._tar is None or self._count % _SAMPLES_A_TAR == 0:
            self.close()
            self._tar = tarfile.open(self._out / f"{self._count // _SAMPLES_A_TAR:05d}.tar", "w")  # noqa: SIM115
        key = sample.name
        about = {
            "key": key,
            "url": sample.url,
            "caption": sample.caption,
            "sha256": sample.source_sha256,  # as img2dataset means it: of the bytes that the URL served
            "image_id": sample.image_id,
            "image_sha256": sample.image_sha256,
            "texts": sample.pairs,
        }
        _add(self._tar, f"{key}.{sample.extension}", sample.image)
        if sample.caption is not None:
            _add(self._tar, f"{key}.txt", sample.caption.encode())
        _add(self._tar, f"{key}.json", json.dumps(about, ensure_ascii=False).encode())
        self._count += 1

    def close(self) -> None:
        """Ends the tar."""
        if self._tar:
            self._tar.close()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


FORMATS: Mapping[Format, Callable[[Path], Writer]] = {
    "llava": LlavaWriter,
    "messages": lambda out: ParquetWriter(out, "messages"),
    "texts": lambda out: ParquetWriter(out, "texts"),
    "webdataset": WebdatasetWriter,
}
"""Format -> what makes its writer, given an empty folder."""
