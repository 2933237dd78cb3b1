"""JSON with a checksum of its own: what was damaged and is still JSON is not taken for what was written."""

import json

import pytest

from dialog_gen.core.sealed_json import checked, sealed, unsealed

CONTENT = {"shard": "a-000", "images": 24, "reasons": {"rejected": {"empty": 2}}, "rate": 0.1, "names": ["é", None]}


def test_what_was_sealed_is_read_again() -> None:
    assert unsealed(json.dumps(sealed(CONTENT))) == CONTENT
    assert unsealed(json.dumps(sealed({"pair": (1, 2), "of": {3: 4}}), indent=2)) == {"pair": [1, 2], "of": {"3": 4}}
    # The order of keys does not matter, nor do spaces.
    assert unsealed(json.dumps(dict(reversed(sealed(CONTENT).items())), indent=1).encode()) == CONTENT


def test_what_has_no_checksum_is_not_checked() -> None:
    assert unsealed(json.dumps(CONTENT)) == CONTENT
    assert checked([1]) == [1]


@pytest.mark.parametrize("indent", [None, 2])
def test_no_flipped_bit_changes_the_content(indent: int | None) -> None:
    text = json.dumps(sealed(CONTENT), indent=indent).encode()
    for bit in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = unsealed(bytes(damaged))
        except ValueError:
            continue
        # In the key of the checksum, a flipped bit takes the checksum away.
        assert {key: value for key, value in found.items() if key in CONTENT} == CONTENT


@pytest.mark.parametrize("checksum", [None, 1, [], "", "0" * 64])
def test_a_wrong_checksum(checksum: object) -> None:
    with pytest.raises(ValueError, match="checksum"):
        checked({**CONTENT, "sha256": checksum})
