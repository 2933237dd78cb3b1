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

    A sample is KEY.jpg (or another extension for the format of the image), KEY.json and KEY.txt, the caption, which is
    empty if there is none. All samples have the same names, because `datasets.load_dataset("webdataset")` takes the
    columns from the first: so all images have the extension of the first, and readers see the format of each in its
    content. Further images of a sample are KEY.2.jpg, ...: `--images-per-sample all` reads them as one sample again,
    and `datasets` reads them if all samples have as many.
    """

    description = "OUT/*.tar with KEY.jpg (or the first image's format), KEY.json and the caption as KEY.txt"

    def __init__(self, out: Path) -> None:
        self._out, self._count = out, 0
        self._tar: tarfile.TarFile | None = None
        self._extension: str | None = None

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
            **({} if sample.statements is None else {"statements": sample.statements}),
        }
        for name, data in sample.files:
            stem, _, extension = name.rpartition(".")
            self._extension = self._extension or extension
            _add_member(self._tar, f"{stem}.{self._extension}", data)
        _add_member(self._tar, f"{key}.txt", (sample.caption or "").encode())
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
