import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dialog_gen.core.errors import FailedCheckError
from dialog_gen.download.unpack import UnpackLimits, unpack

Members = Iterable[tuple[str, bytes]]
GOOD = [("val/", b""), ("val/a.jpg", b"A"), ("./val/sub/ü.txt", b"text"), ("val//b:c", b""), ("empty/", b"")]
UNPACKED = {"val/a.jpg": b"A", "val/sub/ü.txt": b"text", "val/b:c": b""}


def write_zip(path: Path, members: Members, mode: int = 0, **changes: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is: a backslash, too
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (stat.S_IFDIR if name.endswith("/") else mode) << 16
            file.writestr(info, data)
    return path


def write_tar(path: Path, members: Members, kind: bytes = tarfile.REGTYPE, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, data in members:
            info = tarfile.TarInfo(name.removesuffix("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else kind
            info.size = len(data) if info.isreg() else 0
            info.linkname = "" if info.isreg() or info.isdir() else "/etc/passwd"
            file.addfile(info, io.BytesIO(data))
    return path


def write_tgz(path: Path, members: Members) -> Path:
    return write_tar(path, members, mode="w:gz")


WRITERS: list[Callable[[Path, Members], Path]] = [write_zip, write_tar, write_tgz]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refused(archive: Path, to: Path, message: str, **limits: Any) -> None:
    """Is refused in one line, and nothing of it is left anywhere."""
    before = files(archive.parent.parent)
    with pytest.raises(FailedCheckError, match=f"{archive.name} was not unpacked: .*{message}") as caught:
        unpack(archive, to, UnpackLimits(**limits))
    assert "\n" not in str(caught.value)
    assert not to.exists()
    assert not to.with_name(f"{to.name}.part").exists()
    assert files(archive.parent.parent) == before


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Where to write one; it has no extension, as the content tells."""
    (tmp_path / "a").mkdir()
    return tmp_path / "a" / "archive"


@pytest.mark.parametrize("write", WRITERS)
def test_files_and_folders(archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path]) -> None:
    # What an interrupted try left.
    (tmp_path / "to.part" / "old").mkdir(parents=True)
    assert unpack(write(archive, GOOD), tmp_path / "to") == len(UNPACKED)
    assert files(tmp_path / "to") == UNPACKED
    assert (tmp_path / "to/empty").is_dir()
    assert not (tmp_path / "to.part").exists()
    assert archive.exists()


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("members", "to", "found"),
    [
        (["val/a", "val/b"], "val", {"a", "b"}),
        (["val/a", "b"], "val", {"val/a", "b"}),
        (["val/a"], "other", {"val/a"}),
        (["val"], "val", {"val"}),  # a file of that name is no folder
    ],
)
def test_a_folder_of_the_same_name_is_not_doubled(
    archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path], members: list[str], to: str, found: set[str]
) -> None:
    unpack(write(archive, [(name, b"x") for name in members]), tmp_path / to)
    assert set(files(tmp_path / to)) == found


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["/etc/x"], "leads outside"),
        (["../x"], "leads outside"),
        (["ok", "a/../../x"], "leads outside"),
        (["a/.."], "leads outside"),
        ([r"..\x"], "leads outside"),
        ([r"a\b"], "leads outside"),
        (["C:/x"], "leads outside"),
        (["c:x"], "leads outside"),
        (["a", "a"], "'a' is in it twice"),
        (["d/a", "./d//a"], "'d/a' is in it twice"),
        (["d/a", "d/A"], "'d/a' and 'd/A' are one name"),
        (["d/a", "D/b"], "'d' and 'D' are one name"),
        (["\u00e9", "e\u0301"], "are one name"),
        (["a", "a/b"], "'a' is both a file and a folder"),
        (["a/b", "a"], "'a' is both a file and a folder"),
        (["a/", "a"], "'a' is both a file and a folder"),
    ],
)
def test_names(
    archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path], names: list[str], message: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of zipfile, on writing duplicates
        write(archive, [(name, b"" if name.endswith("/") else b"x") for name in names])
    refused(archive, tmp_path / "to", message)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/" * 20_000 + "x", r"'(a/){40}'\.\.\. is a name of more than 1024 bytes"),
        ("n" * 300, r"'n{80}'\.\.\. has a part of more than 255 bytes"),
        ("ü" * 128, r"'ü{80}'\.\.\. has a part of more than 255 bytes"),
        ("a/" * 64 + "x", r"'(a/){40}'\.\.\. lies more than 64 folders deep"),
    ],
)
def test_names_without_measure(
    archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path], name: str, message: str
) -> None:
    refused(write(archive, [("ok", b"x"), (name, b"x")]), tmp_path / "to", message)


@pytest.mark.parametrize("write", WRITERS)
def test_the_longest_and_the_deepest_name(
    archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path]
) -> None:
    names = ["n" * 255, "a/" * 63 + "x", "/".join(["b" * 203] * 5)]
    assert unpack(write(archive, [(name, b"x") for name in names]), tmp_path / "to") == 3
    assert set(files(tmp_path / "to")) == set(names)


def test_a_name_that_is_a_bomb(archive: Path, tmp_path: Path) -> None:
    """A few hundred bytes that stand for one name of 120,000: its prefixes alone would be 7 GB."""
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as file:
        file.addfile(tarfile.TarInfo("a/" * 60_000 + "x"))
    assert archive.stat().st_size < 1000
    tracemalloc.start()
    refused(archive, tmp_path / "to", "is a name of more than 1024 bytes")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 10_000_000


def test_folders_count_for_what_they_cost(archive: Path, tmp_path: Path) -> None:
    """Each name, 512 bytes of a tar that packs well, asks for 60 folders of its own."""
    write_tgz(archive, [(f"{number:03d}/" + "a/" * 60 + "x", b"") for number in range(100)])
    refused(archive, tmp_path / "to", "more than 1000000 bytes come out", max_bytes=1_000_000)


def test_a_name_that_ends_at_a_zero_byte(archive: Path, tmp_path: Path) -> None:
    write_zip(archive, [("good.txt_evil", b"x")])
    archive.write_bytes(archive.read_bytes().replace(b"good.txt_evil", b"good.txt\0evil"))
    refused(archive, tmp_path / "to", r"'good\.txt\\x00evil' leads outside")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip(archive: Path, tmp_path: Path, mode: int) -> None:
    refused(write_zip(archive, [("x", b"/etc/passwd")], mode | 0o777), tmp_path / "to", "'x' is a link or device")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(archive: Path, tmp_path: Path, kind: bytes) -> None:
    refused(write_tar(archive, [("x", b"")], kind), tmp_path / "to", "'x' is a link or device")


def test_a_file_behind_a_link(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive, "w") as file:
        link = tarfile.TarInfo("d")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "a")
        file.addfile(link)
        file.addfile(tarfile.TarInfo("d/planted"))
    refused(archive, tmp_path / "to", "'d' is a link")


def test_encrypted(archive: Path, tmp_path: Path) -> None:
    write_zip(archive, [("x", b"data")])
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    refused(archive, tmp_path / "to", "'x' is encrypted")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_members": 2}, "more than 2 members"),
        ({"max_bytes": 20_000}, "more than 20000 bytes come out"),
        ({"max_ratio": 2, "free_bytes": 30_000}, "bytes come out"),
    ],
)
def test_bounds(
    archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path], limits: dict[str, Any], message: str
) -> None:
    write(archive, [(f"{number}", bytes(20_000)) for number in range(4)])
    if "max_ratio" in limits and write is write_tar:
        return  # it is as large as what comes out
    refused(archive, tmp_path / "to", message, **limits)


def test_a_size_that_lies(archive: Path, tmp_path: Path) -> None:
    """The header says 5 bytes, a megabyte of zeros comes."""
    write_zip(archive, [("x", bytes(1 << 20))])
    data = archive.read_bytes().replace((1 << 20).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    archive.write_bytes(data)
    refused(archive, tmp_path / "to", "", max_bytes=1000)


def test_a_sparse_file_is_as_large_as_it_unpacks(archive: Path, tmp_path: Path) -> None:
    """GNU tar stores holes as a map: 512 bytes can stand for a terabyte."""
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as file:
        info = tarfile.TarInfo("hole")
        info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[483:495] = tarfile.itn(1 << 30, 12)  # type: ignore[attr-defined]
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        file.fileobj.write(header)  # type: ignore[union-attr]
        file.offset += len(header)
    refused(archive, tmp_path / "to", "more than 1000000 bytes", max_bytes=1_000_000)


def test_a_header_that_is_a_bomb(archive: Path, tmp_path: Path) -> None:
    """100 MB of a pax header, in a few kilobytes."""
    with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"comment": "x" * 100_000_000}
        file.addfile(info)
    refused(archive, tmp_path / "to", "bytes come out", free_bytes=10_000_000)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, -1])
def test_cut_off(archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path], cut: float) -> None:
    data = write(archive, [(str(n), os.urandom(20_000)) for n in range(3)]).read_bytes()
    end = len(data) // 2 if cut == 0.5 else int(cut)
    # Behind its last file a tar holds nothing but zeros.
    archive.write_bytes(data[:35_000] if write is write_tar and cut == -1 else data[:end])
    refused(archive, tmp_path / "to", "damaged")


@pytest.mark.parametrize("write", [write_zip, write_tgz])
def test_damaged(archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path]) -> None:
    data = bytearray(write(archive, [(str(n), os.urandom(20_000)) for n in range(3)]).read_bytes())
    data[30_000] ^= 1
    archive.write_bytes(data)
    refused(archive, tmp_path / "to", "damaged")


@pytest.mark.parametrize("content", [b"<html>Not found</html>" * 99, gzip.compress(b"no tar", mtime=0)])
def test_no_archive(archive: Path, tmp_path: Path, content: bytes) -> None:
    archive.write_bytes(content)
    refused(archive, tmp_path / "to", "damaged, or no zip or tar")


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_in_it(archive: Path, tmp_path: Path, write: Callable[[Path, Members], Path]) -> None:
    refused(write(archive, [("empty/", b"")]), tmp_path / "to", "it holds no files")
