"""`dialog-gen report A --compare B`: two datasets on the same images."""

from pathlib import Path
from typing import Any

import pytest
from helpers.browser import browser, in_browser
from helpers.cli import Cli
from helpers.inputs import png, sha256
from helpers.pages import HOSTILE, read, write_dataset
from helpers.rows import gates_of, make_row

from dialog_gen.core.errors import UsageError
from dialog_gen.inspect.page import compare as compare_module
from dialog_gen.inspect.page import report
from dialog_gen.inspect.page.compare import aligned


def pairs(*texts: tuple[str, str]) -> list[dict[str, str]]:
    return [{"user": user, "assistant": assistant} for user, assistant in texts]


def other_image(number: int, of: int) -> dict[str, Any]:
    """The columns of a row about `png(of)`."""
    return {"image_sha256": sha256(png(of)), "images": [{"bytes": png(of), "path": None}]}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A: images 0 to 9, 8 rejected. B: 0 to 4 and 8; image 5 under another id, other bytes as 6; 7 rejected; 20."""
    folder = tmp_path_factory.mktemp("two")
    asked = pairs(("What colour?", "Red."), ("How many?", "two"))
    first = [make_row(i, texts=asked, gates=gates_of([[], ["leak"]], leak=[0.1, 0.9])) for i in range(10) if i != 8]
    first.append(make_row(8, "rejected", reason="too_few_pairs", raw=["raw of A"]))
    second = [make_row(i, texts=pairs(("what colour", "red"), ("Is it big?", "no"))) for i in (0, 1, 2, 8)]
    second += [make_row(i, texts=pairs(("How many?", "3"), ("What colour?", "blue"))) for i in (3, 4)]
    second.append(make_row(30, texts=asked, **other_image(30, 5)))
    second.append(make_row(6, texts=asked, **other_image(6, 31)))
    second += [make_row(7, "rejected", reason="repeated", raw=["raw of B"]), make_row(20, texts=asked)]
    write_dataset(folder / "A" / "d", first, {"model": "m", "temperature": 0.5, "images": "/secret"})
    write_dataset(folder / "B" / "d", second, {"model": "other", "temperature": 0.5, "images": "/place"})
    return folder / "A" / "d", folder / "B" / "d"


def test_images_are_matched_by_bytes_or_else_by_id(two: tuple[Path, Path], tmp_path: Path) -> None:
    written = report(two[0], tmp_path / "r.html", compare=two[1])
    data = read(tmp_path / "r.html").data
    told, rows = data["comparison"], data["gallery"]["rows"]
    assert (told["found"], told["looked_for"], told["all_of_first"], told["only_second"]) == (9, 10, True, 1)
    assert (told["same"], told["other_id"], told["other_bytes"]) == (7, 1, 1)
    assert told["only_with_dialogue"] == [1, 1]
    assert told["settings"] == [["model", "m", "other"]]
    # Images 0 to 2: one question of both, same answer; 3, 4: two, none; 5, 6: two, both; 7, 8: none.
    assert (told["asked_by_both"], told["answered_alike"]) == (3 + 4 + 4, 3 + 0 + 4)
    assert [(row["sides"][0]["id"], row["sides"][1]["id"]) for row in rows] == [
        *((f"image {i}", f"image {i}") for i in range(5)),
        ("image 5", "image 30"),
        *((f"image {i}", f"image {i}") for i in (6, 7, 8)),
    ]
    by_id = {row["sides"][0]["id"]: row for row in rows}
    assert by_id["image 8"]["sides"][0]["raw"] == ["raw of A"]
    assert by_id["image 7"]["sides"][1]["reason"] == "repeated"
    # The image of both is shown once; of the same id but other bytes, both are.
    assert [len(row["images"]) + len(row["sides"][1].get("images", [])) for row in by_id.values()].count(2) == 1
    assert len(by_id["image 6"]["sides"][1]["images"]) == 1
    assert data["name"] == "A/d and B/d"
    assert (written.samples, written.of) == (9, 9)
    assert written.verdict.startswith(
        "9 of 10 images of A are in B too; where both ask the same question, they agree on 63.6 % of 11 answers."
    )
    assert "/secret" not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("first", "second", "lines"),
    [
        (["a", "b", "c"], ["x", "B?", "a."], [[0, 2], [1, 1], [2, None], [None, 0]]),
        (["a", "a", "a"], ["a", "A!"], [[0, 0], [1, 1], [2, None]]),
        ([], ["x", "y"], [[None, 0], [None, 1]]),
        (["x"], [], [[0, None]]),
    ],
)
def test_pairs_of_the_same_question_stand_together(
    first: list[str], second: list[str], lines: list[list[int | None]]
) -> None:
    assert aligned([{"user": text} for text in first], [{"user": text} for text in second]) == lines


def test_of_large_datasets_some_images_are_looked_for(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not known of all images is not claimed; the same seed gives the same page."""
    monkeypatch.setattr(compare_module, "_LOOKED_FOR", 4)
    written = [report(two[0], tmp_path / f"{i}.html", compare=two[1], samples=3, seed=1) for i in range(2)]
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()
    told = read(tmp_path / "0.html").data["comparison"]
    assert (told["looked_for"], told["all_of_first"], told["only_second"]) == (4, False, None)
    assert "of 4 images of A, drawn at random, " in written[0].verdict
    assert written[0].samples == min(3, written[0].of)


def test_nothing_in_common(tmp_path: Path) -> None:
    for name, numbers in (("a", range(3)), ("b", range(10, 13))):
        write_dataset(tmp_path / name, [make_row(i) for i in numbers])
    written = report(tmp_path / "a", tmp_path / "r.html", compare=tmp_path / "b")
    assert written.verdict.startswith("These datasets have no image in common")
    assert (written.samples, written.thumbnails) == (0, None)


@pytest.mark.parametrize(
    ("other", "said"),
    [("nowhere", "nowhere does not exist"), ("d", "--compare d is the same dataset"), ("d/", "is the same dataset")],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialog_gen_cli: Cli, other: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "d", [make_row(0)])
    code, out, err = dialog_gen_cli("report", "d", "--compare", other, "--out", "r.html")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "r.html").exists()


def test_a_damaged_second_dataset(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, [make_row(0)])
    (tmp_path / "b" / "data" / "s0.parquet").write_bytes(b"PAR1" * 9)
    with pytest.raises(UsageError, match=r"b/data/s0\.parquet cannot be read"):
        report(tmp_path / "a", tmp_path / "r.html", compare=tmp_path / "b")


@in_browser
def test_what_a_reader_sees(two: tuple[Path, Path], tmp_path: Path) -> None:
    report(two[0], tmp_path / "r.html", compare=two[1])
    (tmp_path / "profile").mkdir()
    with browser(tmp_path / "profile") as reader:
        reader.open(tmp_path / "r.html", "#image=image%203")
        card = ".card[data-id='image 3']"
        assert [text.split() for text in reader.texts(f"{card} li")] == [
            ["What", "colour?", "ARed.", "Bblue"],
            ["How", "many?", "Atwo", "leak", "0.9", "B3"],
        ]
        found = "document.getElementById('found').innerText"
        for show, count in (("differing", "2 of 9 images"), ("lost", "2 of 9 images"), ("same", "5 of 9 images")):
            reader.click("#clear")
            reader.choose("#show", show)
            assert reader.value(found) == count
        reader.click("#clear")
        reader.choose("#sort", "differing")
        first = [reader.value(f"document.querySelectorAll('.card')[{i}].dataset.id") for i in range(2)]
        assert sorted(first) == ["image 3", "image 4"]
        assert reader.texts(".card[data-id='image 7'] .no-dialogue pre") == ["raw of B"]
        assert "same bytes, other id: image 30" in reader.texts(".card[data-id='image 5'] footer > span")
        assert reader.value("document.querySelectorAll(\".card[data-id='image 6'] img\").length") == 2
        lines = reader.text("#comparison").replace("\xa0", " ")
        assert "9 of 10 images of A are in B too; 1 image of B is not in A." in lines
        assert "1 image has another id in B and the same bytes." in lines
        assert reader.texts("#comparison tbody tr") == ["model\tm\tother"]
        for width in (400, 1300):
            reader.open(tmp_path / "r.html", width=width)
            assert reader.value("document.documentElement.scrollWidth") <= width
        assert reader.problems == []
        assert [address for address in reader.requests if "r.html" not in address] == []


@in_browser
def test_hostile_data_is_text(tmp_path: Path) -> None:
    for side in ("a", "b"):
        rows = [
            make_row(i, image_id=f"{i} {text}", caption=text, texts=pairs((text, f"{side}{text}")))
            for i, text in enumerate(HOSTILE)
        ]
        write_dataset(tmp_path / side, rows, {"model": "".join(HOSTILE) + side, "dtype": side})
    report(tmp_path / "a", tmp_path / "r.html", compare=tmp_path / "b")
    (tmp_path / "profile").mkdir()
    with browser(tmp_path / "profile") as reader:
        reader.open(tmp_path / "r.html")
        assert reader.value("document.title") == "a and b"
        assert reader.value("document.querySelectorAll('script').length") == 2
        shown = reader.value("[...document.querySelectorAll('#cards .caption')].map((each) => each.textContent)")
        assert shown == list(HOSTILE)
        assert reader.problems == []
