from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.inputs import png, write_files, write_tar

from dialog_eval.data.image_index import ImageIndex
from dialog_gen.core.errors import UsageError


def source_of(root: Path, names: Sequence[str]) -> ImageIndex:
    write_files(root, {name: png(number) for number, name in enumerate(names)})
    return ImageIndex(str(root))


def test_reads_what_is_asked_for(tmp_path: Path) -> None:
    source = source_of(tmp_path, ["a/2.png", "b/1.png", "b/10.png"])
    assert source.image_ids == ["a/2.png", "b/1.png", "b/10.png"]
    assert [(i.image_id, i.data) for i in source.read({"b/10.png", "a/2.png"})] == [
        ("a/2.png", png(0)),
        ("b/10.png", png(2)),
    ]


@pytest.mark.parametrize(
    ("there", "file_name", "found"),
    [
        (["00000/000000012.png"], "00000/000000012.jpg", 0),
        (["x/COCO_val2014_000000000042.jpg", "x/a.jpg"], "COCO_val2014_000000000042.jpg", 0),
        (["a.jpg", "b.jpg"], "val2014/b.jpg", 1),
        (["x/a.jpg", "a.jpg"], "x/a.jpg", 1),  # the whole path counts before the last component
        (["x/a.jpg", "y/a.jpg"], "y/a.png", 1),
        (["v1.5.jpg", "v1.jpg"], "v1.5", 0),  # no extension of an image
        (["A.JPG"], "A", 0),
    ],
)
def test_by_file_name(tmp_path: Path, there: list[str], file_name: str, found: int) -> None:
    source = source_of(tmp_path, there)
    expected = sorted(there)[found]
    assert source.by_file_name({7: file_name}) == {7: expected}


def test_each_image_once(tmp_path: Path) -> None:
    source = source_of(tmp_path, ["a.jpg", "b.jpg"])
    names = {1: "a.jpg", 2: "b.jpg", 3: "x/a.png"}
    assert source.by_file_name(names) == {1: "a.jpg", 2: "b.jpg", 3: "a.jpg"}
    with pytest.raises(UsageError, match=r"a\.jpg of .* is listed twice, as 'a\.jpg' and 'x/a\.png': list each"):
        source.by_file_name(names, each_once=True)
    with pytest.raises(UsageError, match=r"a\.jpg of .* is listed twice, as 'a': list each"):
        source.by_file_name({1: "a", 2: "b", 3: "a"}, each_once=True)


def test_by_file_name_in_tars(tmp_path: Path) -> None:
    write_tar(tmp_path / "00000.tar", {"000000012.jpg": png(0), "000000013.jpg": png(1)})
    source = ImageIndex(str(tmp_path))
    assert source.by_file_name({12: "00000/000000012.jpg"}) == {12: "00000/000000012"}
    assert source.by_number([13]) == {13: "00000/000000013"}


def test_by_number(tmp_path: Path) -> None:
    source = source_of(tmp_path, ["COCO_val2014_000000000042.jpg", "7.png", "8x.png", "x/8"])
    assert source.by_number([42, 7]) == {42: "COCO_val2014_000000000042.jpg", 7: "7.png"}


def test_missing_and_ambiguous(tmp_path: Path) -> None:
    source = source_of(tmp_path, ["x/a1.jpg", "y/a1.jpg", "y/b.jpg"])
    with pytest.raises(UsageError, match=r"which image is meant by image 1 \(x/a1.jpg or y/a1.jpg\)"):
        source.by_number([1])
    with pytest.raises(UsageError, match=r"image 'z/a1.jpg' \(x/a1.jpg or y/a1.jpg\)"):
        source.by_file_name({1: "z/a1.jpg"})
    with pytest.raises(UsageError, match=r"lacks 5 images: 2, 3, 4 and 2 more; it has such as x/a1\.jpg"):
        source.by_number([1, 2, 3, 4, 5, 6])
    with pytest.raises(UsageError, match=r"lacks image 'c\.jpg'"):
        source.by_file_name({1: "c.jpg"})


def test_one_id_in_two_shards(tmp_path: Path) -> None:
    """Parquet files name their images themselves."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("a", "b"):
        pq.write_table(pa.table({"image_id": ["1"], "image": [png(1)]}), tmp_path / f"{name}.parquet")
    with pytest.raises(UsageError, match=r"image 1 \(1 or 1\)"):
        ImageIndex(str(tmp_path)).by_number([1])
