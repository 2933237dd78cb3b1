"""Input that used to end in a traceback: each ends in one line, with exit code 2 or 1."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.inputs import write_images
from helpers.rows import files_of, make_row, shard_of, write_shard

from dialog_gen.dataset.folder import DatasetFolder
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.dataset.writer import open_writer

DEEP = "[" * 100_000
SIDECAR = "shards/s.json"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with open_writer("d", {"schema_version": SCHEMA_VERSION, "model": "m"}) as store:
        write_shard(store, shard_of("s", 2), [make_row(0), make_row(1)])
    return tmp_path / "d"


@pytest.mark.parametrize(
    "content", [DEEP, '{"a":' * 100_000, "9" * 5000, '{"seed": NaN}', '{"seed": 1e400}', "\0", "\udcff"]
)
@pytest.mark.parametrize(
    "command", ["status", "verify", "stats", "gate", "compact --out c", "export --to llava --out e"]
)
def test_config_json(dialog_gen_cli: Cli, source: Path, command: str, content: str) -> None:
    (source / "config.json").write_text(content, errors="surrogateescape")
    name, *options = command.split()
    assert "config.json is damaged" in dialog_gen_cli(name, "d", *options).mistake


@pytest.mark.parametrize("value", ["1" + "0" * 400, "9" * 5000, "-1", "1e400", "Infinity", "NaN", str(2**63), DEEP])
@pytest.mark.parametrize("field", ['"images": 2', '"rows": 2', '"output_tokens": 0', '"bytes": '])
def test_a_sidecar(dialog_gen_cli: Cli, source: Path, field: str, value: str) -> None:
    text = (source / SIDECAR).read_text()
    key = field.partition(":")[0]
    damaged = "\n".join(f"{line.partition(':')[0]}: {value}," if key in line else line for line in text.splitlines())
    assert damaged != text
    (source / SIDECAR).write_text(damaged)
    assert "shards/s.json is damaged" in dialog_gen_cli("status", "d").out
    assert dialog_gen_cli("verify", "d").code == 1
    assert "damaged" in dialog_gen_cli("compact", "d", "--out", "c").mistake


@pytest.mark.parametrize("path", ["data/\\u0000.parquet", "data/../x.parquet", "x"])
def test_a_path_in_a_sidecar(dialog_gen_cli: Cli, source: Path, path: str) -> None:
    text = (source / SIDECAR).read_text()
    (source / SIDECAR).write_text(text.replace("data/s.parquet", path))
    assert dialog_gen_cli("verify", "d").code == 1


@pytest.mark.parametrize(
    "content", [DEEP, '{"settings": {"length": {"min": Infinity}}}', '{"pairs": 1e400}', "9" * 5000]
)
def test_gates_json(dialog_gen_cli: Cli, source: Path, content: str) -> None:
    (source / "gates.json").write_text(content)
    assert dialog_gen_cli("report", "d", "--out", "p.html").code == 0
    from dialog_gen.core.errors import UsageError
    from dialog_gen.publish.card_data import card_data

    with pytest.raises(UsageError, match=r"gates\.json is damaged \([^\n]+\): `dialog-gen gate` writes it again"):
        card_data(DatasetFolder("d"))


@pytest.mark.parametrize("content", ["a = " + "[" * 5000, "a = " + "9" * 5000, "\0", "\udcff"])
@pytest.mark.parametrize(
    "command",
    [
        "gate d --gates f.toml",
        "download f.toml --out o",
        "run --model shapes-llava --images i --out o --protocol f.toml",
    ],
)
def test_toml(dialog_gen_cli: Cli, source: Path, command: str, content: str) -> None:
    Path("f.toml").write_text(content, errors="surrogateescape")
    write_images(Path("i"), 2)
    assert "f.toml" in dialog_gen_cli(*command.split()).mistake


@pytest.mark.parametrize(
    "arguments",
    [
        ("compact", "d", "--out", "\udce9"),
        ("export", "d", "--to", "llava", "--out", "\udce9"),
        ("export", "d", "--to", "parquet", "--out", "\udce9"),
        ("report", "d", "--out", "\udce9.html"),
        ("status", "\udce9"),
        ("run", "--model", "shapes-llava", "--images", "\udce9", "--out", "o", "--dry-run"),
        ("run", "--model", "shapes-llava", "--images", "i", "--out", "\udce9", "--dry-run"),
        ("run", "--model", "\udce9", "--images", "i", "--out", "o"),
        ("download", "\udce9.csv", "--out", "o"),
        ("download", "list.csv", "--out", "\udce9"),
    ],
)
def test_an_argument_that_is_not_utf_8(dialog_gen_cli: Cli, source: Path, arguments: tuple[str, ...]) -> None:
    """It works, or ends in one line."""
    write_images(Path("i"), 2)
    write_images(Path("\udce9"), 2) if "--images" in arguments else None
    Path("list.csv").write_text("a,b\n")
    ended = dialog_gen_cli(*arguments)
    assert ended.code in (0, 2)
    assert "internal error" not in ended.err
    if ended.code:
        assert ended.error
    elif arguments[0] == "compact":
        assert files_of(Path("\udce9")).keys() >= {"config.json", "data/part-00000.parquet"}


def test_a_full_disk_under_the_notes(dialog_gen_cli: Cli, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "run.json").write_text(json.dumps({"run": 1}))
    write_bytes: Callable[..., int] = Path.write_bytes

    def full(path: Path, data: Any) -> int:
        if path.name == "run.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        error = dialog_gen_cli("compact", "d", "--out", "c").mistake
    assert error == (
        "error: cannot write c: No space left on device. Free some space and run again; finished shards are kept.\n"
    )
    assert dialog_gen_cli("compact", "d", "--out", "c").code == 0
    assert (Path("c") / "run.json").read_bytes() == (source / "run.json").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--model", "shapes-llava", "--images", "i", "--engine", "transformers", "--out"),
        ("compact", "d", "--out"),
        ("export", "d", "--to", "texts", "--out"),
    ],
)
def test_an_output_that_is_no_utf_8_is_refused_before_the_work(
    dialog_gen_cli: Cli, source: Path, arguments: tuple[str, ...]
) -> None:
    write_images(source.parent / "i", 1)
    assert r"o\udce9 is no UTF-8" in dialog_gen_cli(*arguments, "o\udce9").mistake
    assert not os.path.exists("o\udce9")  # noqa: PTH110 - as the system sees it
