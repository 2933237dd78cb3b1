"""Whatever a source is named and made of: what is given is used or counted, ids and shard names are unique."""

import io
import os
import tarfile
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from helpers.engine import ScriptedEngine
from helpers.inputs import png
from helpers.rows import rows_of
from helpers.runs import run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.verify import totals, verify
from dialog_gen.sources.base import InputShard, open_source
from dialog_gen.sources.images import IMAGE_EXTENSIONS
from dialog_gen.sources.unique import check_unique_ids
from dialog_gen.sources.unused import UNUSED_REASONS

SOME = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
FEW = settings(SOME, max_examples=15)

# Names are likely to collide: few letters, and the very characters that keys, escapes and shard names are made of.
PIECES = ["a", "A", "b", "0", ".", " ", "-", "_", "~", "\\", "\\xff", "\u00e9", "e\u0301", "\udcff"]
STEMS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
ENDINGS = st.sampled_from(
    ["", ".jpg", ".JPG", ".png", ".Png", ".txt", ".TXT", ".json", ".mask.png", ".cls", ".svg", ".tar", ".parquet"]
)
FOLDERS = st.sampled_from(["", "a/", "A/", "a/b/", "a.b/"])


def _is_file_name(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last not in ("", ".", "..") and not last.startswith(".")


NAMES = st.builds(lambda *parts: "".join(parts), FOLDERS, STEMS, ENDINGS).filter(_is_file_name)


@contextmanager
def folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def listed(root: Path, size: int) -> list[InputShard]:
    """The shards, after a check of what holds for all sources; [] if there are no images."""
    try:
        shards = list(open_source(str(root), shard_size=size))
    except UsageError as error:
        if "no images" not in str(error):
            raise
        return []
    check_unique_ids(str(root))
    ids = [image_id for shard in shards for image_id in shard.image_ids()]
    assert len(set(ids)) == len(ids)
    assert all(image_id.encode() for image_id in ids)
    names = [shard.name.casefold() for shard in shards]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and len(name) < 128 and not set(name) & set('/\\:*?"<>| ') for name in names)
    assert all(shard.unused.keys() <= set(UNUSED_REASONS) for shard in shards)
    return shards


def unused_of(shards: list[InputShard]) -> int:
    return sum(number for shard in shards for number in shard.unused.values())


@SOME
@given(st.sets(NAMES.filter(lambda name: not name.lower().endswith((".tar", ".parquet")))), st.integers(1, 3))
def test_any_file_names(names: set[str], size: int) -> None:
    with folder() as root:
        given_files = dict[str, bytes]()
        for name in sorted(names):
            path = root / os.fsdecode(os.fsencode(name))
            if any(parent.is_file() for parent in path.parents) or path.is_dir():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            given_files[name] = b"{}" if name.endswith(".json") else os.fsencode(name)
            path.write_bytes(given_files[name])
        shards = listed(root, size)
        if not shards:
            return
        images = [image for shard in shards for image in shard.read()]
        extensions = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
        of_images = [name for name in given_files if name.lower().endswith(extensions)]
        assert sorted(image.data for image in images) == sorted(given_files[name] for name in of_images)
        stems = {name.rpartition(".")[0] for name in of_images}
        texts = [n for n in given_files if n.endswith((".txt", ".json")) and n.rpartition(".")[0] in stems]
        assert len(of_images) + len(texts) + unused_of(shards) == len(given_files)


@SOME
@given(
    st.dictionaries(
        st.sampled_from(["x.tar", "x.TAR", "X.tar", "x.tar.gz", "x.tgz", "a/b.tar", "a.tar", "a.TAR.tar"]),
        st.lists(NAMES, unique_by=lambda name: name.removeprefix("./"), max_size=8),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 3),
)
def test_any_member_names(tars: dict[str, list[str]], size: int) -> None:
    with folder() as root:
        contents = set[bytes]()
        for tar_name, members in tars.items():
            path = root / tar_name
            path.parent.mkdir(exist_ok=True)
            with tarfile.open(path, "w:gz" if tar_name.endswith("gz") else "w") as tar:
                for name in members:
                    data = b"{}" if name.endswith(".json") else os.fsencode(f"{tar_name}/{name}")
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                    contents.add(data)
        shards = listed(root, size)
        if not shards:
            return
        images = [image for shard in shards for image in shard.read()]
        data = [image.data for image in images]
        assert len(set(data)) == len(data)
        assert contents.issuperset(data)
        texts = sum(
            sum(size is not None for size in reference.sizes[1:]) for s in shards for reference in s._references
        )
        assert len(images) + texts + unused_of(shards) == sum(len(members) for members in tars.values())


CELLS = st.one_of(st.none(), st.binary(max_size=3))
TEXTS = st.one_of(st.none(), st.binary(max_size=4))


def _text_array(values: list[bytes | None]) -> pa.Array:
    """A column of strings that may not be UTF-8, as damaged exports have them."""
    plain = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(plain), plain.buffers())


@SOME
@given(
    st.lists(
        st.lists(st.tuples(st.binary(max_size=3), st.lists(CELLS, max_size=3), TEXTS), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_any_rows(files: list[list[tuple[bytes, list[Any], Any]]], size: int, with_ids: bool, prefix: bool) -> None:
    with folder() as root:
        for number, rows in enumerate(files):
            columns: dict[str, Any] = {
                "image": pa.array([cells for _, cells, _ in rows], pa.list_(pa.binary())),
                "caption": _text_array([text for _, _, text in rows]),
            }
            if with_ids:
                columns["id"] = _text_array([image_id for image_id, _, _ in rows])
            pq.write_table(pa.table(columns), root / f"{number}.parquet", row_group_size=2)
        ids = [(number if prefix else 0, row[0]) for number, rows in enumerate(files) for row in rows]
        try:
            check_unique_ids(str(root), prefix_ids=prefix)
            is_unique = True
        except UsageError as error:
            if "have the same id" not in str(error):
                raise
            is_unique = False
        assert is_unique == (not with_ids or len(set(ids)) == len(ids))
        if not is_unique:
            return
        shards = list(open_source(str(root), shard_size=size, prefix_ids=prefix))
        images = [image for shard in shards for image in shard.read()]
        assert len({image.image_id for image in images}) == len(images)
        rows = [row for rows in files for row in rows]
        assert [image.data for image in images] == [(cells[0] if cells else None) or b"" for _, cells, _ in rows]
        assert [image.caption for image in images] == [
            t if t is None else t.decode("utf-8", "replace") for *_, t in rows
        ]
        assert unused_of(shards) == sum(max(0, len(cells) - 1) for _, cells, _ in rows)


@FEW
@given(
    st.dictionaries(NAMES.filter(lambda name: not name.endswith(".json")), st.integers(0, 3), max_size=8),
    st.integers(1, 3),
)
def test_given_is_accepted_rejected_unreadable_or_unused(members: dict[str, int], size: int) -> None:
    with folder() as root:
        (root / "in").mkdir()
        with tarfile.open(root / "in" / "t.tar", "w") as tar:
            for number, (name, kind) in enumerate(members.items()):
                data = png(number) if kind else b"no image"
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        shards = listed(root / "in", size)
        if not shards:
            return
        run(root / "in", root / "out", ScriptedEngine(), shard_size=size)
        found = totals(str(root / "out"))
        texts = sum(reference.sizes[1] is not None for shard in shards for reference in shard._references)
        unused = sum(found.unused.values())
        assert found.accepted + found.rejected + found.unreadable + texts + unused == len(members)
        assert len(rows_of(root / "out")) == found.accepted
        assert verify(str(root / "out")).problems == []
