"""Which tokens an answer's log-probability is the mean of."""

import math

import pytest

from dialog_gen.generation.logprobs import answer_logprobs
from dialog_gen.protocols.parsing import QAPair, parse_qa_list

PIECES = ["1", ".", " Q", ":", " How", " many", "?", " A", ":", " 2", "\n", "2", ".", " Q:", " Is", " it", " red", "?"]
LISTED = [*PIECES, " A:", " No", ",", " it", " is", " blue", ".", "</s>"]
TEXT = "".join(LISTED[:-1])
# Every token has a log-probability of its own.
LOG_PROBS = [-float(i + 1) for i in range(len(LISTED))]


def mean(*indices: int) -> float:
    return sum(LOG_PROBS[i] for i in indices) / len(indices)


@pytest.mark.parametrize("strip", [False, True], ids=["with spaces", "without, as sentencepiece decodes a token"])
def test_answers_of_a_list(strip: bool) -> None:
    tokens = [token.strip() if strip else token for token in LISTED]
    pairs = parse_qa_list(TEXT, pairs=2, truncated=False)
    assert [pair.assistant for pair in pairs] == ["2", "No, it is blue."]
    found = answer_logprobs(TEXT, list(zip(tokens, LOG_PROBS, strict=True)), pairs, questions_in_text=True)
    # The "2" of the answer, not that of "2. Q:".
    assert found == pytest.approx([mean(9), mean(19, 20, 21, 22, 23, 24)])


def test_an_answer_is_looked_for_behind_its_question() -> None:
    text, tokens = "Q: Is it red? A: red", ["Q:", " Is", " it", " red", "?", " A:", " red"]
    numbered = list(zip(tokens, [-1.0 * i for i in range(7)], strict=True))
    assert answer_logprobs(text, numbered, [QAPair("Is it red?", "red")], questions_in_text=True) == [-6.0]


def test_a_free_answer() -> None:
    """Its question is not in the text; a token that reaches into the answer counts."""
    tokens = [(" Answer: A", -1.0), (" red", -2.0), ("  ", -9.0), (" star", -4.0), (".", -8.0)]
    text = "".join(token for token, _ in tokens)
    pairs = [QAPair("What do you see?", "A red star")]
    assert answer_logprobs(text, tokens, pairs, questions_in_text=False) == pytest.approx([-7 / 3])


def test_half_characters_do_not_move_the_others() -> None:
    """Tokens of a character's bytes decode to nothing that stands in the text."""
    tokens = [(" a", -1.0), ("\ufffd", -50.0), ("\ufffd", -50.0), (" cat", -3.0)]
    found = answer_logprobs(" a🐈 cat", tokens, [QAPair("?", "cat")], questions_in_text=False)
    assert found == [-3.0]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("red", []), ("something else", [("something", -1.0), (" else", -1.0)])],
    ids=["no tokens were asked for", "words that parsing put together"],
)
def test_nothing_to_say(text: str, tokens: list[tuple[str, float]]) -> None:
    assert answer_logprobs(text, tokens, [QAPair("What color?", "red")], questions_in_text=False) == [None]


def test_no_number_is_no_confidence() -> None:
    tokens = [("red", math.nan), (".", -1.0), (" Blue", -math.inf)]
    pairs = [QAPair("Is it?", "red."), QAPair("And?", "Blue")]
    assert answer_logprobs("red. Blue", tokens, pairs, questions_in_text=False) == [None, -math.inf]
