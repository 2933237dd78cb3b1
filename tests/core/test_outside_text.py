"""JSON and TOML from outside: whatever is wrong with them is one error of one line."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from dialog_gen.core.errors import UsageError
from dialog_gen.core.json_text import parse_json
from dialog_gen.core.toml_files import apply_overrides, read_toml, read_toml_model


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\0", b"\xff", b'"\xe9"', b"{", b'{"a": 1}x', b"'a'"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN", b"[Infinity]", b"-Infinity", b"1e400"),
    ],
)
def test_json_that_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_json(data)


def test_json_that_is_read() -> None:
    text = '{"a": [1, 2.5, 1e-400, null, "\\u00e9", -0.0]}'
    assert parse_json(text) == parse_json(text.encode("utf-16")) == {"a": [1, 2.5, 0.0, None, "é", 0.0]}
    assert parse_json("[NaN, 1e400, -Infinity]", finite=False)[1:] == [float("inf"), float("-inf")]


@pytest.mark.parametrize(
    "content", [b"a = " + b"[" * 5000, b"a = " + b"9" * 5000, b"\0", b"a = '\xff'", b"a = 1\na = 2"]
)
def test_toml_that_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "f.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"^recipe file .*/f\.toml [^\n]+$"):
        read_toml(file, "recipe")


@pytest.mark.parametrize("value", ["0x" + "f" * 9000, "'" + "x" * 9000 + "'"])
def test_a_value_of_any_length_fits_into_a_message(tmp_path: Path, value: str) -> None:
    class Small(BaseModel):
        number: float = 0

    file = tmp_path / "f.toml"
    file.write_text(f"number = {value}")
    with pytest.raises(UsageError) as error:
        read_toml_model(file, Small, "recipe")
    assert len(str(error.value)) < 600


def test_overrides_of_any_kind() -> None:
    content: dict[str, object] = {}
    apply_overrides(content, [f"a={'9' * 5000}"])
    assert content == {"a": "9" * 5000}
    with pytest.raises(UsageError, match="the value of a is nested too deeply"):
        apply_overrides(content, [f"a={'[' * 5000}"])
