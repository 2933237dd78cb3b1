# ruff: noqa: ISC004, RUF001 - a case is one long string and its pairs; full-width punctuation is part of some
import contextlib
import gc
import re
import time
import unicodedata
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialog_gen.protocols import parsing
from dialog_gen.protocols.parsing import REASONS, MalformedAnswer, QAPair, parse_answer, parse_qa_list

COLOR = ("What color is the circle?", "red")
COUNT = ("How many circles are there?", "2")
PLACE = ("Where is the square?", "top right")
THREE = [COLOR, COUNT, PLACE]
SENTENCES = [
    ("What color is the circle?", "The circle is red."),
    ("How many circles are there?", "There are 2."),
    ("Where is the square?", "It is in the top right."),
]

LISTS = {
    "canonical": (
        "1. Q: What color is the circle? A: red\n2. Q: How many circles are there? A: 2\n"
        "3. Q: Where is the square? A: top right",
        THREE,
    ),
    "canonical_one_line": (
        "1. Q: What color is the circle? A: red 2. Q: How many circles are there? A: 2 "
        "3. Q: Where is the square? A: top right",
        THREE,
    ),
    "answers_on_own_lines": (
        "1. Q: What color is the circle?\nA: red\n\n2. Q: How many circles are there?\nA: 2\n\n"
        "3. Q: Where is the square?\nA: top right",
        THREE,
    ),
    "words": (
        "1. Question: What color is the circle? \n Answer: red\n2. Question: How many circles are there? \n Answer: 2\n"
        "3. Question: Where is the square? \n Answer: top right\n",
        THREE,
    ),
    "numbered_words": (
        "Question 1: What color is the circle? Answer 1: red\nQuestion 2: How many circles are there? Answer 2: 2\n"
        "Question 3: Where is the square? Answer 3: top right",
        THREE,
    ),
    "numbered_letters": (
        "Q1: What color is the circle?\nA1: red\nQ2: How many circles are there?\nA2: 2\n"
        "Q3: Where is the square?\nA3: top right",
        THREE,
    ),
    "numbered_letters_dot": (
        "Q1. What color is the circle? A1. red Q2. How many circles are there? A2. 2 "
        "Q3. Where is the square? A3. top right",
        THREE,
    ),
    "dotted_labels": (
        "Q. What color is the circle? A. red\nQ. How many circles are there? A. 2\n"
        "Q. Where is the square? A. top right",
        THREE,
    ),
    "headings_without_colon": (
        "Question 1\nWhat color is the circle?\nAnswer 1\nred\nQuestion 2\nHow many circles are there?\nAnswer 2\n2\n"
        "Question 3\nWhere is the square?\nAnswer 3\ntop right",
        THREE,
    ),
    "bold_labels": (
        "**Q1:** What color is the circle? **A:** red\n**Q2:** How many circles are there? **A:** 2\n"
        "**Q3:** Where is the square? **A:** top right",
        THREE,
    ),
    "bold_questions": (
        "1. **What color is the circle?**\nred\n2. **How many circles are there?**\n2\n"
        "3. **Where is the square?**\ntop right",
        THREE,
    ),
    "bold_inside_answer": (
        "**1. Q: What color is the circle?**\n**A:** It is **red** and round.",
        [("What color is the circle?", "It is red and round.")],
    ),
    "parenthesis_numbers": (
        "1) What color is the circle?\nThe circle is red.\n2) How many circles are there?\nThere are 2.\n"
        "3) Where is the square?\nIt is in the top right.",
        SENTENCES,
    ),
    "numbered_one_line_each": (
        "1. What color is the circle? The circle is red.\n2. How many circles are there? There are 2.\n"
        "3. Where is the square? It is in the top right.",
        SENTENCES,
    ),
    "numbered_all_one_line": (
        "1. What color is the circle? The circle is red. 2. How many circles are there? There are 2. "
        "3. Where is the square? It is in the top right.",
        SENTENCES,
    ),
    "questions_then_answers": (
        "1. What color is the circle? 2. How many circles are there? 3. Where is the square?\n\n"
        "1. The circle is red. 2. There are 2. 3. It is in the top right.",
        SENTENCES,
    ),
    "questions_then_short_answers": (
        "1. What color is the circle? 2. How many circles are there? 3. Where is the square?\n\n"
        "1. red\n2. 2\n3. top right",
        THREE,
    ),
    "questions_then_plain_lines": (
        "1. What color is the circle?\n2. How many circles are there?\n3. Where is the square?\n\nred\n2\ntop right",
        THREE,
    ),
    "questions_then_labelled_answers": (
        "Q1: What color is the circle?\nQ2: How many circles are there?\nQ3: Where is the square?\n\n"
        "A1: red\nA2: 2\nA3: top right",
        THREE,
    ),
    "numbered_questions_then_labelled_answers": (
        "1. What color is the circle?\n2. How many circles are there?\n3. Where is the square?\n\n"
        "A1: red\nA2: 2\nA3: top right",
        THREE,
    ),
    "questions_and_answers_headings": (
        "Questions:\n1. What color is the circle?\n2. How many circles are there?\n3. Where is the square?\n\n"
        "Answers:\n1. red\n2. 2\n3. top right",
        THREE,
    ),
    "no_numbers": (
        "Q: What color is the circle? A: red\nQ: How many circles are there? A: 2\n"
        "Q: Where is the square? A: top right",
        THREE,
    ),
    "no_numbers_one_line": (
        "Q: What color is the circle? A: red Q: How many circles are there? A: 2 Q: Where is the square? A: top right",
        THREE,
    ),
    "question_labels_only": (
        "Q: What color is the circle?\nred\nQ: How many circles are there?\n2\nQ: Where is the square?\ntop right",
        THREE,
    ),
    "answer_labels_only": (
        "What color is the circle?\nA: red\nHow many circles are there?\nA: 2\nWhere is the square?\nA: top right",
        THREE,
    ),
    "numbers_and_answer_labels": (
        "1. What color is the circle? A: red\n2. How many circles are there? A: 2\n"
        "3. Where is the square? A: top right",
        THREE,
    ),
    "no_labels_no_numbers": (
        "What color is the circle?\nred\n\nHow many circles are there?\n2\n\nWhere is the square?\ntop right",
        THREE,
    ),
    "preamble": (
        "Sure! Here are three questions:\n\n1. Q: What color is the circle? A: red\n2. Q: How many circles are there? "
        "A: 2\n3. Q: Where is the square? A: top right",
        THREE,
    ),
    "preamble_same_line": (
        "Three fundamental questions about this image are: 1. What color is the circle? The circle is red. "
        "2. How many circles are there? There are 2. 3. Where is the square? It is in the top right.",
        SENTENCES,
    ),
    "dash_bullets": (
        "- Q: What color is the circle?\n- A: red\n- Q: How many circles are there?\n- A: 2\n"
        "- Q: Where is the square?\n- A: top right",
        THREE,
    ),
    "star_bullets_unlabelled": (
        "* What color is the circle?\n* red\n* How many circles are there?\n* 2\n* Where is the square?\n* top right",
        THREE,
    ),
    "answers_as_bullets": (
        "1. What color is the circle?\n- red\n2. How many circles are there?\n- 2\n"
        "3. Where is the square?\n- top right",
        THREE,
    ),
    "answers_take_numbers_too": (
        "1. What color is the circle?\n2. red\n3. How many circles are there?\n4. 2\n"
        "5. Where is the square?\n6. top right",
        THREE,
    ),
    "repeated_numbers": (
        "1. Q: What color is the circle? A: red\n1. Q: How many circles are there? A: 2\n"
        "1. Q: Where is the square? A: top right",
        THREE,
    ),
    "numbers_on_both": (
        "1. Q: What color is the circle?\n1. A: red\n2. Q: How many circles are there?\n2. A: 2\n"
        "3. Q: Where is the square?\n3. A: top right",
        THREE,
    ),
    "number_on_own_line": (
        "1.\nQ: What color is the circle?\nA: red\n2.\nQ: How many circles are there?\nA: 2\n"
        "3.\nQ: Where is the square?\nA: top right",
        THREE,
    ),
    "no_space_after_marks": (
        "1.Q:What color is the circle? A:red\n2.Q:How many circles are there? A:2\n"
        "3.Q:Where is the square? A:top right",
        THREE,
    ),
    "lower_case_labels": (
        "1. q: What color is the circle? a: red\n2. q: How many circles are there? a: 2\n"
        "3. q: Where is the square? a: top right",
        THREE,
    ),
    "crlf": (
        "1. Q: What color is the circle?\r\nA: red\r\n2. Q: How many circles are there?\r\nA: 2\r\n"
        "3. Q: Where is the square?\r\nA: top right\r\n",
        THREE,
    ),
    "more_than_asked": (
        "1. Q: What color is the circle? A: red\n2. Q: How many circles are there? A: 2\n"
        "3. Q: Where is the square? A: top right\n4. Q: What shape is left? A: triangle",
        THREE,
    ),
    "fourth_question_starts": (
        "1. Q: What color is the circle? A: red\n2. Q: How many circles are there? A: 2\n"
        "3. Q: Where is the square? A: top right\n4. Q: What sha",
        THREE,
    ),
    "run_on_turn": (
        "1. Q: What color is the circle? A: red\n2. Q: How many circles are there? A: 2\n"
        "3. Q: Where is the square? A: top right USER: What else? ASSISTANT: Nothing.",
        THREE,
    ),
    "run_on_hashes": (
        "1. Q: What color is the circle? A: red\n2. Q: How many circles are there? A: 2\n"
        "3. Q: Where is the square? A: top right\n### Assistant: ok",
        THREE,
    ),
    "special_tokens": (
        "<s> ASSISTANT: 1. Q: What color is the circle? A: red\n2. Q: How many circles are there? A: 2\n"
        "3. Q: Where is the square? A: top right</s><pad><pad>",
        THREE,
    ),
    "format_then_filled_in": (
        "1. Q: ... A: ...\n\n1. Q: What color is the circle? A: red\n2. Q: How many circles are there? A: 2\n"
        "3. Q: Where is the square? A: top right",
        THREE,
    ),
    "full_width_colons": (
        "1. Q：What color is the circle? A：red\n2. Q：How many circles are there? A：2\n"
        "3. Q：Where is the square? A：top right",
        THREE,
    ),
    "spanish_words": (
        "1. Pregunta: ¿De qué color es? Respuesta: rojo\n2. Pregunta: ¿Cuántos hay? Respuesta: 3",
        [("¿De qué color es?", "rojo"), ("¿Cuántos hay?", "3")],
    ),
    "spanish_letters": (
        "P: ¿De qué color es? R: rojo\nP: ¿Cuántos hay? R: 3",
        [("¿De qué color es?", "rojo"), ("¿Cuántos hay?", "3")],
    ),
    "chinese_words": (
        "问题1：圆是什么颜色？\n回答1：红色。\n问题2：有几个圆？\n回答2：两个。",
        [("圆是什么颜色？", "红色。"), ("有几个圆？", "两个。")],
    ),
    "chinese_letters_one_line": (
        "1. 问：圆是什么颜色？答：红色。2. 问：有几个圆？答：两个。",
        [("圆是什么颜色？", "红色。"), ("有几个圆？", "两个。")],
    ),
    "chinese_numbers": (
        "1、圆是什么颜色？红色。\n2、有几个圆？两个。",
        [("圆是什么颜色？", "红色。"), ("有几个圆？", "两个。")],
    ),
    "no_question_mark": (
        "1. Q: Describe the circle A: It is red.\n2. Question: Name a shape.\nAnswer: square",
        [("Describe the circle", "It is red."), ("Name a shape.", "square")],
    ),
    "no_question_mark_numbered": (
        "1. Describe the circle. Answer: It is red.\n2. Name a shape. Answer: square",
        [("Describe the circle.", "It is red."), ("Name a shape.", "square")],
    ),
    "decimals_and_times": (
        "1. Q: How long is it? A: There are 3.5 meters.\n2. Q: When is it? A: at 10:30. Or 2. 5 later",
        [("How long is it?", "There are 3.5 meters."), ("When is it?", "at 10:30. Or 2. 5 later")],
    ),
    "label_in_quotes": (
        "1. Q: What does the sign say? A: the sign reads 'Q: exit'\n2. Q: And below? A: \"A: enter\" or so",
        [("What does the sign say?", "the sign reads 'Q: exit'"), ("And below?", '"A: enter" or so')],
    ),
    "label_in_answer": (
        "1. Q: What does the sign say? A: It reads Q: exit\n2. Q: And below? A: Exit A: closed",
        [("What does the sign say?", "It reads Q: exit"), ("And below?", "Exit A: closed")],
    ),
    "label_in_question": (
        "Q: What is behind Exit A: the gate? A: a road\nQ: Who is there? A: nobody",
        [("What is behind Exit A: the gate?", "a road"), ("Who is there?", "nobody")],
    ),
    "answer_label_is_a_phrase": (
        "Q: What color is it? The answer is: red\nQ: How many? The answer: 2",
        [("What color is it?", "red"), ("How many?", "2")],
    ),
    "list_in_answer": (
        "1. Q: What is there? A: There are:\n1. a cat\n2. a dog\n2. Q: How many? A: 2",
        [("What is there?", "There are: 1. a cat 2. a dog"), ("How many?", "2")],
    ),
    "list_in_unlabelled_answer": (
        "What is there?\n1. a cat\n2. a dog\nHow many?\n2",
        [("What is there?", "1. a cat 2. a dog"), ("How many?", "2")],
    ),
    "question_mark_in_answer": (
        '1. What does the sign say? It says "Why?" in red.\n2. Q is what? A letter.',
        [("What does the sign say?", 'It says "Why?" in red.'), ("Q is what?", "A letter.")],
    ),
    "quoted_question_mark_in_question": (
        '1. What does "Why?" mean here? A joke.\n2. Who wrote it? The owner.',
        [('What does "Why?" mean here?', "A joke."), ("Who wrote it?", "The owner.")],
    ),
    "answer_number_with_dot": (
        "Q: How many? A: 2. Q: How many more? A: 3. Q: Where? A: left",
        [("How many?", "2."), ("How many more?", "3."), ("Where?", "left")],
    ),
    "answer_number_with_dot_unlabelled": (
        "1. How many? 2. 2. How many more? 3.\n3. Where? left",
        [("How many?", "2."), ("How many more?", "3."), ("Where?", "left")],
    ),
    "answer_number_ends_sentence": (
        "1. How many? There are 2. They are red. 2. Where? left",
        [("How many?", "There are 2. They are red."), ("Where?", "left")],
    ),
    "article_is_no_label": (
        "1. Q: Who is it? A: Maybe. A 12-year-old boy.\n2. Q: Which? A: A 4:3 screen",
        [("Who is it?", "Maybe. A 12-year-old boy."), ("Which?", "A 4:3 screen")],
    ),
    "initial_is_no_label": (
        "1. Who is it? A. Lincoln.\n2. Where? P. Diddy knows.",
        [("Who is it?", "A. Lincoln."), ("Where?", "P. Diddy knows.")],
    ),
    "many_lines_collapsed": (
        "1. Q: What is\n   there?\nA: A  cat.\n\n\tIt sleeps.\n2. Q: How many? A: 1",
        [("What is there?", "A cat. It sleeps."), ("How many?", "1")],
    ),
    "quoted_fields": (
        '1. Q: "What color is it?" A: “red”\n2. Q: *How many?* A: _2_',
        [("What color is it?", "red"), ("How many?", "2")],
    ),
    "control_characters": ("Q: What\x00 color? A: re\u200bd\x07", [("What color?", "re d")]),
    "lone_surrogate": ("Q: What color? A: red \ud83d", [("What color?", "red")]),
    "two_sentence_question": (
        "1. Look at the top. What is it? Is it red?\nYes.\n2. And below? No.",
        [("Look at the top. What is it? Is it red?", "Yes."), ("And below?", "No.")],
    ),
    "same_question_two_answers": ("Q: Color? A: red\nQ: Color? A: blue", [("Color?", "red"), ("Color?", "blue")]),
    "unanswered_in_the_middle": ("1. Q: One? A: a\n2. Q: Two? A:\n3. Q: Three? A: c", [("One?", "a"), ("Three?", "c")]),
    "question_over_two_lines": (
        "Q: What is\nthere?\nA cat.\nQ: Who? Me.",
        [("What is there?", "A cat."), ("Who?", "Me.")],
    ),
    "labels_named_in_an_answer": (
        "Q: What is on the wall?\nA: Q: and A: are written.\nQ: Where?\nA: Below Question: and Answer: in red.",
        [("What is on the wall?", "Q: and A: are written."), ("Where?", "Below Question: and Answer: in red.")],
    ),
    "initials_are_no_choices": (
        "Q: Is it Mr. A. or Mrs. B.?\nA: Mrs. B.\nQ: Who is in the picture, Mr. A. or Mrs. B.?\nA: Mr. A.",
        [("Is it Mr. A. or Mrs. B.?", "Mrs. B."), ("Who is in the picture, Mr. A. or Mrs. B.?", "Mr. A.")],
    ),
    "copies_skipped": ("Q: One? A: a\nQ: One? A: A.\nQ: Two? A: b", [("One?", "a"), ("Two?", "b")]),
}


@pytest.mark.parametrize(("text", "expected"), LISTS.values(), ids=LISTS)
def test_lists(text: str, expected: list[tuple[str, str]]) -> None:
    assert parse_qa_list(text, pairs=len(expected), truncated=False) == [QAPair(*pair) for pair in expected]


REFUSED = {
    "empty": ("", "empty"),
    "whitespace": (" \r\n\t \n", "empty"),
    "only_special_tokens": ("<s></s><pad>", "empty"),
    "only_a_turn": ("USER: hello", "empty"),
    "refusal": ("I'm sorry, but I cannot see the image.", "no_questions"),
    "caption": ("A red circle next to a square. It is large.", "no_questions"),
    "answers_only": ("1. The circle is red.\n2. There are 2.\n3. Top right.", "no_questions"),
    "format_echoed": ("1. Q: ... A: ...", "placeholder"),
    "prompt_echoed": (
        "Ask 3 fundamental questions about this image and answer each one. Format: 1. Q: ... A: ...",
        "placeholder",
    ),
    "bracket_placeholders": (
        "1. Q: What color? A: [answer]\n2. Q: How many? A: [Your answer here]\n3. Q: Where? A: <answer>",
        "placeholder",
    ),
    "numbered_questions_only": ("1. What color?\n2. How many?\n3. Where?", "missing_answers"),
    "labelled_questions_only": ("Q: What color?\nQ: How many?\nQ: Where?", "missing_answers"),
    "blank_answers": ("1. Q: What color? A:\n2. Q: How many? A:\n3. Q: Where? A:", "missing_answers"),
    "answers_echo": ("Q: One? A: One?\nQ: Two? A: Two?\nQ: Three? A: three", "missing_answers"),
    "too_few_answers_below": ("1. One?\n2. Two?\n3. Three?\n\n1. a\n2. b", "missing_answers"),
    "two_pairs": ("1. Q: What color? A: red\n2. Q: How many? A: 2", "too_few_pairs"),
    "one_plain_pair": ("What color is it?\nRed.", "too_few_pairs"),
    "copies": ("1. Q: What color? A: red\n2. Q: What color? A: red\n3. Q: What color? A: red", "repeated"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_lists(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=f"^{reason}$") as raised:
        parse_qa_list(text, pairs=3, truncated=False)
    assert raised.value.reason == reason
    assert reason in REASONS


CUT = {
    "last_pair_cut": ("Q: One? A: a\nQ: Two? A: b and", 2, None),
    "last_pair_not_needed": ("Q: One? A: a\nQ: Two? A: b and", 1, [("One?", "a")]),
    "cut_in_next_question": ("Q: One? A: a\nQ: Two? A: b\nQ: Thr", 2, [("One?", "a"), ("Two?", "b")]),
    "cut_in_needed_question": ("Q: One? A: a\nQ: Tw", 2, None),
    "cut_after_run_on": ("Q: One? A: a\nQ: Two? A: b\nUSER: and th", 2, [("One?", "a"), ("Two?", "b")]),
    "cut_in_last_of_the_answers": ("1. One?\n2. Two?\n\n1. a\n2. b", 2, None),
}


@pytest.mark.parametrize(("text", "pairs", "expected"), CUT.values(), ids=CUT)
def test_truncated_lists(text: str, pairs: int, expected: list[tuple[str, str]] | None) -> None:
    if expected is None:
        with pytest.raises(MalformedAnswer, match=r"^truncated$"):
            parse_qa_list(text, pairs=pairs, truncated=True)
    else:
        assert parse_qa_list(text, pairs=pairs, truncated=True) == [QAPair(*pair) for pair in expected]


ANSWERS = {
    "plain": (" red\n", "red"),
    "digit": (" 3", "3"),
    "sentence": ("The circle is red.", "The circle is red."),
    "label": ("Answer: red", "red"),
    "short_label": ("Short answer: red", "red"),
    "letter_label": ("A: red", "red"),
    "run_on_question": ("red Question: how many circles are there? Answer: two", "red"),
    "run_on_question_line": ("red.\nquestion: how many? answer: two", "red."),
    "run_on_letters": ("red. Q: how many? A: two", "red."),
    "run_on_turn": ("red USER: how many?", "red"),
    "run_on_lower_turn": ("red\nUser: how many?", "red"),
    "run_on_answers": ("red. Answer: red. Answer: red.", "red."),
    "special_tokens": ("</s>red</s>\n</s>", "red"),
    "question_label_and_answer": ("Question: What color is the circle? Answer: red", "red"),
    "article": ("A 12-year-old boy", "A 12-year-old boy"),
    "initial": ("A. Lincoln", "A. Lincoln"),
    "good_question": ("It is a good question: maybe red.", "It is a good question: maybe red."),
    "quoted_label": ("The sign reads 'Question: why?'", "The sign reads 'Question: why?'"),
    "labels_named": ("A: Q: and A: are written.", "Q: and A: are written."),
    "list": ("1. a cat\n2. a dog", "1. a cat 2. a dog"),
    "bold": ("It is **red**.", "It is red."),
    "censored": ("f**k and 2 ** 3", "f**k and 2 ** 3"),
}


@pytest.mark.parametrize(("text", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_answers(text: str, expected: str) -> None:
    assert parse_answer(text, question="What color is the circle?") == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("</s>", "empty"),
        ("...", "empty"),
        ("Answer:", "empty"),
        ("USER: and now?", "empty"),
        ("[answer]", "placeholder"),
        ("What color is the circle?", "echo"),
        ("what color is the circle", "echo"),
        ("Question: What color is the circle?", "echo"),
        ("Question: How many are there? Answer: two", "echo"),
    ],
)
def test_refused_answers(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=f"^{reason}$"):
        parse_answer(text, question="What color is the circle?")


def test_the_docstring_explains_every_reason() -> None:
    documented = re.findall(r"^([a-z_]+)  +\w", parsing.__doc__ or "", re.MULTILINE)
    assert tuple(documented) == REASONS


_PIECES = [
    *("Q:", "A:", "1. ", "2) ", "Q1:", "Question: ", "Answer 2: ", "Answers:", "问：", "答：", "USER:", "</s>", "###"),
    *("?", "？", "\n", " ", ". ", "**", "- ", '"', "red", "What", "...", "[answer]", "\x00", "3.5", "7."),
]
_noise = st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=5)), max_size=40).map("".join)


@given(text=_noise, pairs=st.integers(1, 4), truncated=st.booleans())
def test_any_text_gives_whole_pairs_or_a_reason(text: str, pairs: int, truncated: bool) -> None:
    with contextlib.suppress(MalformedAnswer):
        found = parse_qa_list(text, pairs=pairs, truncated=truncated)
        assert len(found) == pairs
        for pair in found:
            assert_clean(pair.user)
            assert_clean(pair.assistant)


@given(text=_noise, question=_noise)
def test_any_text_gives_an_answer_or_a_reason(text: str, question: str) -> None:
    with contextlib.suppress(MalformedAnswer):
        assert_clean(parse_answer(text, question=question))


def assert_clean(text: str) -> None:
    assert text
    assert text == " ".join(text.split())
    assert not any(unicodedata.category(char) in {"Cc", "Cs"} for char in text)


_words = st.lists(st.from_regex(r"[a-zé]{2,9}|[0-9]{1,3}", fullmatch=True), min_size=1, max_size=8).map(" ".join)
_pairs = st.lists(
    st.builds(QAPair, user=_words.map(lambda words: f"What {words}?"), assistant=_words),
    min_size=1,
    max_size=5,
    unique=True,
)


@given(pairs=_pairs, separator=st.sampled_from(["\n", "\n\n", "\r\n", " "]))
def test_the_canonical_form_round_trips(pairs: list[QAPair], separator: str) -> None:
    text = separator.join(f"{i}. Q: {p.user} A: {p.assistant}" for i, p in enumerate(pairs, 1))
    assert parse_qa_list(text, pairs=len(pairs), truncated=False) == pairs


@pytest.fixture
def work() -> Iterator[Callable[[str], float]]:
    def measure(text: str) -> float:
        start = time.process_time()
        with contextlib.suppress(MalformedAnswer):
            parse_qa_list(text, pairs=10**9, truncated=False)
        with contextlib.suppress(MalformedAnswer):
            parse_answer(text, question="What?")
        return time.process_time() - start

    # A collection goes over everything that this process holds, and a longer text starts more of them.
    gc.disable()
    yield measure
    gc.enable()


@pytest.mark.parametrize(
    "piece",
    [" ", "\n", "?", "Q: ", "A:", "Q:\n", "1. ", "1.\n", "1. Q", "**", "*", "?\"'", "1. a?\n", "Q: a? A: b\n", "<s>",
     "- ", "[answer", "#", "问：？", "1. a\nb\n", "b?\nA: ", "the answer to the question ", "answer to: ", "II. ",
     "A) ", "Q: X?\nA) a\nB) b\n", "A: a\nB: b\n", "I hope\n", "Overall,\n", "```\n", "<think>", "<think></think>",
     '{"', '{"a":"', "\\\"", "{'a", "[[\"", '{"question":"X?","answer":"Y"},', "| ", "|\n", "| a? | b |\n", "<br>",
     "<a ", "<q></q", "X? Y. ", "((1", "a dog Answer: ", "Explanation: ", "س: ", "V: A: ", "①", "4.\n", "###\n",
     "Answer - ", '"', '"Q: ', 'a "A: b" ', "« ", "User: a? Assistant: b\n", "User: ", '"a?","b"\n', "a?,b\n", "q,a\n",
     "<|channel|>final", "<|channel|>analysis<|message|>", "analysis", "assistantfinal", "Answer to Q1: ",
     "Question about ", "a (Explanation: ", "`Q:` ", "(Q) ", "Q1 a? A1 b\n", "Query: a?\nAnswer: b\n", "Round 1\n",
     "#a ", "Done.\n", "一", "Answer I: ", "Ans. ", "I cannot see the image. ", "</s>Q: ", "<tr><td>",
     "Question B: a?\nAnswer B: b\n", "- id: 1\nq: a\n", "ποιο α; β. "],
)  # fmt: skip
def test_work_grows_linearly(piece: str, work: Callable[[str], float]) -> None:
    short = piece * (10_000 // len(piece))
    # Ten times the text: linear work takes ten times as long, quadratic work a hundred times. The constant is for texts
    # whose work is too short to be measured.
    assert any(work(short * 10) < 30 * work(short) + 0.05 for _ in range(3))
