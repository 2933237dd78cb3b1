"""Texts as models write them: the pairs in them are found, and a text without a dialogue is rejected."""
# ruff: noqa: RUF001 - full-width punctuation and digits

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialog_gen.protocols.parsing import REASONS, MalformedAnswer, parse_answer, parse_qa_list

FOLDER = Path(__file__).with_name("answers")
COUNTS: dict[str, tuple[str, ...]] = {
    "n": ("1", "2", "3"),
    "roman": ("I", "II", "III"),
    "letter": ("a", "b", "c"),
    "capital": ("A", "B", "C"),
    "first": ("First", "Second", "Third"),
    "ordinal": ("1st", "2nd", "3rd"),
    "word": ("One", "Two", "Three"),
    "circled": ("①", "②", "③"),
    "chinese": ("一", "二", "三"),
    "wide": ("１", "２", "３"),
}
AROUND = "{n}. Q: {q} A: {a}"


def read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


def render(item: str, pairs: list[list[str]], between: str) -> str:
    """The items of all pairs, one after another."""
    rows = [
        {"q": question, "a": answer} | {name: values[at] for name, values in COUNTS.items()}
        for at, (question, answer) in enumerate(pairs)
    ]
    return between.join(item.format_map(row) for row in rows)


def accepted() -> Iterator[tuple[str, str, list[list[str]]]]:
    """The name, the text and the pairs of every text in lists.toml and languages.toml."""
    groups = read("lists")
    pairs: list[list[str]] = groups.pop("pairs")["pairs"]
    for group, forms in groups.items():
        between = forms.get("between", "\n")
        for name, item in forms.get("each", {}).items():
            yield f"{group}-{name}", render(item, pairs, between), pairs
            if between == "\n":
                yield f"{group}-{name}-blank_lines", render(item, pairs, "\n\n"), pairs
        for name, text in forms.get("around", {}).items():
            yield f"{group}-{name}", text.replace("{items}", render(AROUND, pairs, "\n")), pairs
            words = render("Question {n}: {q}\nAnswer {n}: {a}", pairs, "\n\n")
            if "{items}\n4" not in text and "{items}. 4" not in text and "**4" not in text:
                yield f"{group}-{name}-words", text.replace("{items}", words), pairs
        for name, text in forms.get("whole", {}).items():
            yield f"{group}-{name}", text, pairs
    for language, forms in read("languages").items():
        for number, item in enumerate(forms["each"], 1):
            yield f"{language}-{number}", render(item, forms["pairs"], "\n"), forms["pairs"]
        if "paragraph" in forms:
            yield f"{language}-paragraph", render(forms["paragraph"], forms["pairs"], " "), forms["pairs"]


ACCEPTED = list(accepted())
REJECTED = [
    (f"{reason}-{name}", text, reason) for reason, texts in read("rejected").items() for name, text in texts.items()
]


# All texts of a table are one test, which tells of every wrong one: a test a text would take far longer.


def found_in(text: str) -> list[list[str]] | str:
    """The pairs that the parser finds, or the reason for which it rejects the text."""
    try:
        pairs = parse_qa_list(text, pairs=3, truncated=False)
    except MalformedAnswer as rejected:
        return rejected.reason
    return [[pair.user, pair.assistant.rstrip(".。।۔")] for pair in pairs]


def test_the_pairs_of_each_text_are_found() -> None:
    """Nothing is glued to a question or an answer, and nothing is lost. A full stop after an answer may stay."""
    found = {name: found_in(text) for name, text, _ in ACCEPTED}
    assert len(found) == len(ACCEPTED)
    assert {name: (found[name], pairs) for name, _, pairs in ACCEPTED if found[name] != pairs} == {}


def test_each_text_without_a_dialogue_is_rejected() -> None:
    found = {name: found_in(text) for name, text, _ in REJECTED}
    assert len(found) == len(REJECTED)
    allowed = {name: REASONS if reason == "any" else (reason,) for name, _, reason in REJECTED}
    assert {name: (found[name], allowed[name]) for name in found if found[name] not in allowed[name]} == {}


def test_the_table_is_large_enough() -> None:
    assert len(ACCEPTED) + len(REJECTED) >= 250
    assert len(REJECTED) >= 60


STYLES = [
    (item, forms.get("between", "\n"))
    for group, forms in read("lists").items()
    if group not in ("pairs", "choices")
    for item in forms.get("each", {}).values()
] + [
    (item, "\n")
    for forms in read("languages").values()
    for item in forms["each"]
    if "{q}答" not in item and "{q}{a}" not in item  # needs the full-width question mark
]
_words = st.lists(st.from_regex(r"[b-z][a-z]{2,8}", fullmatch=True), min_size=1, max_size=8).map(" ".join)
_pair = st.tuples(_words.map(lambda words: f"What {words}?"), _words).map(list)


OPENINGS = ["{items}", *read("lists")["openings"]["around"].values()]


@pytest.mark.parametrize("around", OPENINGS)
def test_each_style_is_found_after_each_opening(around: str) -> None:
    pairs = [["What bag is it?", "blue"], ["What color?", "dark red"], ["What time then?", "noon"]]
    wrong = []
    for item, between in STYLES:
        text = around.replace("{items}", render(item, pairs, between))
        found = [[p.user, p.assistant.rstrip(".。")] for p in parse_qa_list(text, pairs=3, truncated=False)]
        if found != pairs:
            wrong.append((text, found))
    assert not wrong


@given(
    pairs=st.lists(_pair, min_size=3, max_size=3, unique_by=lambda pair: pair[0]),
    style=st.sampled_from(STYLES),
    around=st.sampled_from(OPENINGS),
)
def test_pairs_in_any_style_are_found_again(pairs: list[list[str]], style: tuple[str, str], around: str) -> None:
    text = around.replace("{items}", render(style[0], pairs, style[1]))
    found = parse_qa_list(text, pairs=3, truncated=False)
    assert [[p.user, p.assistant.rstrip(".。")] for p in found] == pairs


SINGLE = read("single")


@pytest.mark.parametrize(("text", "answer"), SINGLE["accepted"].values(), ids=SINGLE["accepted"])
def test_a_single_answer_is_found(text: str, answer: str) -> None:
    assert parse_answer(text, question="What is in the picture?") == answer


@pytest.mark.parametrize(("text", "reason"), SINGLE["rejected"].values(), ids=SINGLE["rejected"])
def test_a_single_answer_is_rejected(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=f"^{reason}$"):
        parse_answer(text, question="What is in the picture?")
