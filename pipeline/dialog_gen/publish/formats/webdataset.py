"""WebDataset: tars with the same layout as those of img2dataset."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

from dialog_gen.publish.formats.base import FORMATS, Sample, SampleWriter

_SAMPLES_PER_TAR = 1000


@FORMATS.register("webdataset")
class WebdatasetWriter(SampleWriter):
    """OUT/*.tar with 1,000 samples each. Equal samples give equal bytes.

    A sample is KEY.jpg (or another extension for the format of the image), KEY.json and, if it has a caption, KEY.txt.
    """

    description = "OUT/*.tar with KEY.jpg (or another image format), KEY.json and the caption as KEY.txt"

    def __init__(self, out: Path) -> None:
        self._out, self._count = out, 0
        self._tar: tarfile.TarFile | None = None

    def add(self, sample: Sample) -> None:
        """Adds the files of the sample to the tar; begins a new tar after 1,000 samples."""
        if self._tar is None or self._count % _SAMPLES_PER_TAR == 0:
            self.close()
            self._tar = tarfile.open(self._out / f"{self._count // _SAMPLES_PER_TAR:05d}.tar", "w")  # noqa: SIM115
        key = sample.name
        metadata = {
            "key": key,
            "url": sample.url,
            "caption": sample.caption,
            "sha256": sample.source_sha256,  # as in img2dataset: of the bytes that the URL served
            "image_id": sample.image_id,
            "image_sha256": sample.image_sha256,
            "texts": sample.pairs,
        }
        _add_member(self._tar, f"{key}.{sample.extension}", sample.image)
        if sample.caption is not None:
            _add_member(self._tar, f"{key}.txt", sample.caption.encode())
        _add_member(self._tar, f"{key}.json", json.dumps(metadata, ensure_ascii=False).encode())
        self._count += 1

    def close(self) -> None:
        """Completes the tar."""
        if self._tar:
            self._tar.close()


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))
