"""The official expectations are worked out by hand from vqaEval.py of GT-Vision-Lab/VQA at a013f00."""

import hashlib
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dialog_eval.metrics import vqa
from dialog_eval.metrics.vqa import normalize_answer

# text, official, clean
NORMALIZED = [
    ("Yes", "yes", "yes"),
    ("  dark \t blue\n", "dark blue", "dark blue"),
    ("Two", "2", "2"),
    ("none", "0", "0"),
    ("ten zero", "10 0", "10 0"),
    ("eleven", "eleven", "eleven"),
    ("The cat and an owl", "cat and owl", "cat and owl"),
    ("theater", "theater", "theater"),
    # Nothing is left of an article alone.
    ("a", "", "a"),
    ("The", "", "the"),
    ("?", "", "?"),
    ("", "", ""),
    # A mark becomes a space unless it stands beside one anywhere in the text.
    ("black/white", "black white", "black white"),
    ("red,blue", "red blue", "red blue"),
    ("red, blue", "red blue", "red blue"),
    ("red ,blue", "red blue", "red blue"),
    ("t-shirt", "t shirt", "t shirt"),
    ("t-shirt - red", "tshirt red", "t shirt red"),
    ("x-ray -red", "xray red", "x ray red"),
    ("x;-ray-red", "x ray red", "x ray red"),
    ("t-shirt (red)", "t shirt red", "t shirt red"),
    ("(red)/(blue) (x)", "red blue x", "red blue x"),
    ("what?", "what", "what"),
    ("one-two", "1 2", "1 2"),
    # A comma between digits makes every mark go without a space.
    ("1,000", "1000", "1000"),
    ("1,000-mile", "1000mile", "1000 mile"),
    ("1,000/day,night", "1000daynight", "1000 day night"),
    ("10-12", "10 12", "10 12"),
    ("1,2,3", "123", "123"),
    ("a,1", "1", "1"),
    # Apostrophes, colons and what is not in the list stay.
    ("girl's", "girl's", "girl's"),
    ("2:50 pm", "2:50 pm", "2:50 pm"),
    ("50%", "50%", "50%"),
    ("#1 & $5*", "#1 & $5*", "#1 & $5*"),
    (';/[]"{}()=+\\_-><@`,?!x', "x", "x"),
    # A period goes unless a digit follows, up to the 32nd.
    ("3.5", "3.5", "3.5"),
    (".5", ".5", ".5"),
    ("5.", "5", "5"),
    ("5.x", "5x", "5x"),
    ("no.5", "no.5", "no.5"),
    ("U.S.A.", "usa", "usa"),
    ("mr. x", "mr x", "mr x"),
    ("3. 5", "3 5", "3 5"),
    ("." * 40, "." * 8, "." * 40),
    ("x" + "." * 40, "x" + "." * 8, "x"),
    ("the.", "", "the."),
    # Contractions.
    ("dont", "don't", "don't"),
    ("Dont", "don't", "don't"),
    ("don't", "don't", "don't"),
    ("don\u2019t", "don\u2019t", "don't"),
    ("couldnt've", "couldn't've", "couldn't've"),
    ("couldntve", "couldntve", "couldntve"),
    ("hes ok", "he's ok", "he's ok"),
    ("twas", "'twas", "'twas"),
    ("Im", "im", "i'm"),
    ("I've", "i've", "i've"),
    ("Id've", "id've", "i'd've"),
    ("lets", "lets", "let's"),
    ("shes", "shes", "she's"),
    ("somebody'd", "somebodyd", "somebody'd"),
    ("somebodyd", "somebodyd", "somebody'd"),
    ("somebodyd've", "somebody'd've", "somebody'd've"),
    ("y'all'dve", "y'all'd've", "y'all'd've"),
    ("cant-wont", "can't won't", "can't won't"),
]


@pytest.mark.parametrize(("text", "official", "clean"), NORMALIZED)
def test_normalize(text: str, official: str, clean: str) -> None:
    assert normalize_answer(text) == normalize_answer(text, "official") == official
    assert normalize_answer(text, "clean") == clean


def test_contractions_are_the_published_table() -> None:
    """Of the published dictionary the digest is kept; its entries "let's" and "she's" map to themselves."""
    table = vqa._OFFICIAL_WORDS | {"let's": "let's", "she's": "she's"}
    digest = hashlib.sha256(json.dumps(sorted(table.items())).encode()).hexdigest()
    assert len(table) == 120
    assert digest == "3e5960526f62912d3b70896069c43c13d7c21be38d50ca28efbb9095b499454f"


WORDS = [
    "a",
    "The",
    "yes",
    "two",
    "none",
    "dont",
    "Im",
    "don\u2019t",
    "let's",
    "1,000",
    "3.5",
    "U.S.",
    "\u0130",
    "\u00df",
]
texts = st.lists(st.sampled_from([*WORDS, *";/()-,.?!':07x \t\n\u00a0"])).map("".join)


@given(texts | st.text())
@example("a..5")
@example("1,.5")
@example("a ?")
def test_clean_normalization_is_done_at_once(text: str) -> None:
    once = normalize_answer(text, "clean")
    assert normalize_answer(once, "clean") == once
    assert not text.strip() or once
    assert normalize_answer(f" {text.upper().lower()}\n", "clean") == normalize_answer(text.upper().lower(), "clean")


def test_unknown_mode() -> None:
    with pytest.raises(ValueError, match="'strict'"):
        normalize_answer("yes", "strict")  # pyright: ignore[reportArgumentType]
