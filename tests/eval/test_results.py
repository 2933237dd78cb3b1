import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dialog_eval.metrics.intervals import bootstrap_interval
from dialog_eval.results import Entry, Metric, Reference, Results, load_results
from dialog_gen.core.errors import UsageError


def results() -> Results:
    metric = Metric.of("accuracy", [0.3, 1, 0, 0.9], [7, 7, 2, 2])
    entry = Entry(
        label="DRAFT, weight blend 0.9",
        task="vqa",
        dataset="shapes 0123",
        protocol="MC-18",
        model="shapes-clip",
        weights_sha256="ab",
        blend="weight",
        beta=0.9,
        metrics=[metric],
    )
    reference = Reference(name="always yes", task="vqa", dataset="shapes 0123", metric="accuracy", value=0.25)
    return Results(baseline="base", entries=[entry], references=[reference], settings={"seed": [1, {"a": None}]})


def test_metric_is_the_bootstrap_of_its_values() -> None:
    metric = Metric.of("hits", [True, False, True], groups=range(3))
    assert (metric.values, metric.groups) == ([1, 0, 1], [0, 1, 2])
    assert (metric.mean, metric.low, metric.high) == bootstrap_interval([1, 0, 1])
    grouped = Metric.of("hits", [1, 1, 0, 0], [5, 5, 6, 6])
    # Two images are drawn: both the first, both the second, or one each.
    assert (grouped.mean, grouped.low, grouped.high) == (0.5, 0, 1)


def test_saved_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    for _ in range(2):
        results().save(path)
    assert load_results(path) == results()
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    entry = load_results(path).entries[0]
    assert entry.metric("accuracy") == results().entries[0].metrics[0]
    assert entry.metric("recall") is None


def test_no_flipped_bit_changes_a_figure(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results().save(path)
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 400):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert load_results(path) == results()  # another space
        except UsageError:
            continue
    content = json.loads(whole)
    content["entries"][0]["metrics"][0]["values"][0] = 0.9
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r'checksum is not the one recorded\. Measure again.*remove the key "sha256"'):
        load_results(path)
    # As somebody who changes it on purpose is told; and as earlier versions wrote it.
    del content["sha256"]
    path.write_text(json.dumps(content))
    assert load_results(path).entries[0].metrics[0].values[0] == 0.9


@pytest.mark.parametrize(
    ("values", "groups"), [([], None), ([1.0], [1, 2]), ([1.0, float("nan")], None), ([float("inf")], None)]
)
def test_wrong_values(values: list[float], groups: list[int] | None) -> None:
    with pytest.raises(ValueError, match=r"values|groups"):
        Metric.of("accuracy", values, groups)
    with pytest.raises(ValidationError):
        Metric(name="accuracy", values=values, groups=groups, mean=0, low=0, high=0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["format"], "dialog-eval results 9", "format"),
        (["seeds"], 3, "seeds"),
        (["entries", 0, "task"], "", r"entries\.0\.task"),
        (["entries", 0, "beta"], 1.5, r"entries\.0\.beta"),
        (["entries", 0, "blend"], "ensemble", r"entries\.0\.blend"),
        (["entries", 0, "weights_sha256"], None, r"entries\.0\.weights_sha256"),
        (["entries", 0, "metrics", 0, "values", 1], float("nan"), r"entries\.0\.metrics\.0\.values\.1: .*finite"),
        (["references", 0, "value"], float("inf"), r"references\.0\.value: .*finite"),
        (["entries", 0, "metrics", 0, "values"], [], r"entries\.0\.metrics\.0: .*empty"),
        (["entries", 0, "metrics", 0, "groups"], [1], r"entries\.0\.metrics\.0: .*as many"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, place: list[Any], value: object, message: str) -> None:
    path = tmp_path / "results.json"
    content = results().model_dump(mode="json")
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"results\.json is no results\.json of dialog-eval: {message}") as raised:
        load_results(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"\x89PNG"])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"is no results\.json"):
        load_results(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json cannot be read: No such file"):
        load_results(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_results(tmp_path)
