from pathlib import Path

import pytest

from dialog_gen.errors import UsageError
from dialog_gen.manifests import load_manifest, shipped_manifests

MANIFEST = 'description = "d"\nlicence = "CC0-1.0"\ncolumns = []\nrows = {val = 1}\nsource = {kind = "embedded"}\n'


def test_shapes_is_shipped() -> None:
    shapes = load_manifest("shapes")
    assert (shapes.name, shapes.source.kind) == ("shapes", "embedded")
    assert set(shapes.rows) == {"train", "val", "test"}


def test_every_shipped_file_loads() -> None:
    assert [load_manifest(name).name for name in shipped_manifests()] == list(shipped_manifests())


def test_a_users_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MANIFEST, encoding="utf-8")
    mine = load_manifest(str(tmp_path / "mine.toml"))
    assert (mine.name, mine.licence, mine.rows) == ("mine", "CC0-1.0", {"val": 1})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("licence", "license", "licence: Field required; license: unknown key; did you mean 'licence'"),
        ("kind", "knd", "source.kind: Field required; source.knd: unknown key; did you mean 'kind'. Known: kind"),
        ("embedded", "ftp", "source.kind: Input should be 'embedded', got 'ftp'"),
        ('{kind = "embedded"}', '"embedded"', "source: a table is needed, got 'embedded'"),
        ("val = 1", "vall = 1", "rows.vall: the embedded world has no such split, only train, val, test"),
        ("val = 1", "val = 0", "rows.val: Input should be greater than 0, got 0"),
        ("val = 1", "", "rows: Dictionary should have at least 1 item"),
        ('"d"', '"d', "is not valid TOML"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MANIFEST
    (tmp_path / "mine.toml").write_text(MANIFEST.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError, match=f"manifest file .*mine.toml.*{message}"):
        load_manifest(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape", "unknown manifest 'shape': did you mean 'shapes'"),
        ("no/such.toml", "manifest file no/such.toml: No such file"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_manifest(name)
