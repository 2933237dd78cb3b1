import json
from pathlib import Path
from typing import Any

import pytest

from dialog_eval.data.coco import load_captions, load_file_names
from dialog_gen.core.errors import UsageError

IMAGES = [{"id": 7, "file_name": "b.jpg", "height": 1}, {"id": 3, "file_name": "a.jpg"}]
CAPTIONS = [{"id": n, "image_id": image, "caption": f"{n}"} for n, image in enumerate([3, 7, 3, 7, 7])]


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_captions_keep_the_order_of_the_file(tmp_path: Path) -> None:
    found = load_captions(write(tmp_path / "c.json", {"images": IMAGES, "annotations": CAPTIONS}))
    assert list(found.captions.items()) == [(7, ["1", "3", "4"]), (3, ["0", "2"])]
    assert found.file_names == {7: "b.jpg", 3: "a.jpg"}
    found = load_captions(write(tmp_path / "c.json", {"annotations": CAPTIONS}))
    assert list(found.captions) == [3, 7]
    assert found.file_names is None


def test_any_coco_file_lists_images(tmp_path: Path) -> None:
    file = write(tmp_path / "instances.json", {"images": IMAGES, "annotations": [{"bbox": []}], "categories": []})
    assert load_file_names(file) == {7: "b.jpg", 3: "a.jpg"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": IMAGES, "annotations": []}, "holds no captions"),
        (
            {"images": [*IMAGES, {"id": 9, "file_name": "c"}], "annotations": CAPTIONS},
            "no caption of 1 image, such as image 9",
        ),
        ({"images": IMAGES[:1], "annotations": CAPTIONS}, "lacks 1 image with captions, such as 3"),
        ({"images": [*IMAGES, {"id": 3, "file_name": "x"}], "annotations": CAPTIONS}, "lists image 3 twice"),
        ({"images": IMAGES}, "annotations: Field required"),
        ({"annotations": [{"image_id": 1}]}, "annotations.0.caption"),
        ([], "not a captions file"),
    ],
)
def test_wrong_files(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_captions(write(tmp_path / "c.json", content))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_captions(tmp_path / "none.json")
    with pytest.raises(UsageError, match="list of images: images: Field required"):
        load_file_names(write(tmp_path / "x.json", {}))
