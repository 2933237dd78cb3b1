"""Parses raw model answers into clean question-answer pairs.

The text is cleaned of thinking, mark-up and closing words (`clean`) and split at marks (`marks`): a question label, an
answer label, a list number, a line start. The words of labels, in all languages, are a table (`languages.toml`). Marks
that are plausible in their context open question and answer segments, and questions are paired with the answers that
follow them (`segments`). JSON, Markdown tables (`structured`) and paragraphs (`paragraph`) give such segments, too. An
answer that cannot be trusted raises `MalformedAnswer`, whose `reason` is one of `REASONS`:

empty            nothing is left after cleaning
no_questions     no question was found, such as in a refusal or a caption
placeholder      the model repeated the format ("Q: ... A: ...", "[answer]") instead of filling it in
missing_answers  there are enough questions, but too few have answers; "I cannot see the image." is none
too_few_pairs    there are fewer questions than required
repeated         there are enough pairs, but some are copies of others
truncated        generation stopped at the token limit before enough pairs were complete
echo             a free-form answer repeats its question or asks another one
"""

import re

from dialog_gen.protocols.parsing.choices import resolved, without_letters
from dialog_gen.protocols.parsing.clean import clean, plain, without_special_tokens
from dialog_gen.protocols.parsing.fields import (
    field,
    is_blank,
    is_format,
    is_placeholder,
    is_refusal,
    without_details,
    without_repeats,
)
from dialog_gen.protocols.parsing.languages import ASKING, normal, words
from dialog_gen.protocols.parsing.marks import QUESTION_MARKS, Mark, find_marks
from dialog_gen.protocols.parsing.pairs import REASONS, MalformedAnswer, QAPair
from dialog_gen.protocols.parsing.paragraph import paragraph
from dialog_gen.protocols.parsing.segments import find_segments, pair_up
from dialog_gen.protocols.parsing.statement import statement_of
from dialog_gen.protocols.parsing.structured import structured
from dialog_gen.protocols.parsing.thinking import marks_thought, opens_thought, without_thinking

__all__ = [
    "REASONS",
    "MalformedAnswer",
    "QAPair",
    "marks_thought",
    "opens_thought",
    "parse_answer",
    "parse_qa_list",
    "statement_of",
    "without_special_tokens",
    "without_thinking",
]

_COLONS = ":："  # noqa: RUF001
_OPENS_QUOTE = "\"'“„«‘"  # noqa: RUF001
_LOOK_BACK = 80
_TRAILING_SIGN = re.compile(rf"(?<=[{ASKING}]) ?(?:[|/]{{1,2}}|[-–—]{{1,2}})\Z")  # noqa: RUF001


def parse_qa_list(text: str, *, pairs: int, truncated: bool, special: tuple[str, ...] = ()) -> list[QAPair]:
    """The first `pairs` pairs of a text that lists questions with their answers.

    `truncated` says that generation stopped at the token limit; then an answer at the end of the text is incomplete and
    does not count. `special` are the special tokens of the model's tokenizer, which are no part of any text. Raises
    MalformedAnswer if there are fewer pairs.
    """
    cleaned = clean(text, special, turns=True)
    if not cleaned.text:
        raise MalformedAnswer("truncated" if truncated and cleaned.thinking else "empty")
    if read := structured(cleaned.text):
        listed, segments = read
        # A string or a cell that has its end is whole.
        ended = cleaned.stopped or cleaned.text.endswith(("|", '"')) or "{" in cleaned.text
    else:
        listed, segments, ended = cleaned.text, find_segments(cleaned.text), cleaned.stopped
        if sum(segment.kind == "Q" for segment in segments) < pairs and not any(s.word for s in segments):
            asked = paragraph(listed)
            segments = asked if sum(segment.kind == "Q" for segment in asked) >= pairs else segments
    if not any(segment.kind == "Q" for segment in segments):
        raise MalformedAnswer("no_questions")
    found = _pairs(listed, segments, special)
    if truncated and not ended and segments[-1].kind == "A":
        found = found[:-1]
    answered = [p for p in found if not is_blank(p.user) and not is_blank(p.assistant)]
    answered = [p for p in answered if plain(p.user) != plain(p.assistant) and not is_refusal(p.assistant)]
    answered = [p for p in answered if not is_format(p.user, p.assistant)]
    unique: dict[tuple[str, str], QAPair] = {}
    for p in answered:
        unique.setdefault((plain(p.user), plain(p.assistant)), p)
    if len(unique) >= pairs:
        return list(unique.values())[:pairs]
    if truncated:
        raise MalformedAnswer("truncated")
    if not answered and any(
        is_blank(p.user) or is_placeholder(p.assistant) or is_format(p.user, p.assistant) for p in found
    ):
        raise MalformedAnswer("placeholder")
    if len(answered) >= pairs:
        raise MalformedAnswer("repeated")
    enough = sum(segment.kind == "Q" for segment in segments) >= pairs
    raise MalformedAnswer("missing_answers" if enough else "too_few_pairs")


def parse_answer(text: str, *, question: str, special: tuple[str, ...] = ()) -> str:
    """The answer to `question`, without its label and without additional turns that the model invented.

    `special` are the special tokens of the model's tokenizer, which are no part of the answer. Raises MalformedAnswer
    if there is no usable answer.
    """
    text = clean(text, special).text
    if question.endswith(QUESTION_MARKS):
        text = text.removeprefix(question).lstrip() or text
    every = [m for m in find_marks(text) if m.kind in "QAE" and (m.strong or _begins_turn(m))]
    marks = [mark for at, mark in enumerate(every) if not _is_quoted(text, every, at)]
    start = 0
    if marks and marks[0].kind == "Q" and marks[0].start == 0:
        label = marks.pop(0)
        if not marks or plain(text[label.end : marks[0].start]) != plain(question):
            raise MalformedAnswer("echo")
        start = marks[0].start
    if marks and marks[0].kind in "AE" and marks[0].start == start:
        reasons = marks[0].kind == "E"
        start = marks.pop(0).end
        if reasons and marks and marks[0].kind == "A":
            start = marks.pop(0).end  # "Reasoning: it barks. Answer: a dog"
    answer = field(without_repeats(text[start : marks[0].start if marks else len(text)].strip()))
    if is_blank(answer):
        raise MalformedAnswer("placeholder" if is_placeholder(answer) else "empty")
    if is_refusal(answer):
        raise MalformedAnswer("missing_answers")
    if plain(answer) == plain(question):
        raise MalformedAnswer("echo")
    return answer


def _begins_turn(mark: Mark) -> bool:
    """Whether a label in the middle of a sentence begins another turn: prompts begin turns with "Question"."""
    return mark.kind in "QA" and len(mark.word) > 2 and mark.word[0].isupper()


def _is_quoted(text: str, marks: list[Mark], at: int) -> bool:
    """Whether a label in the middle of a line is what the answer quotes: "The sign reads Answer: 42"."""
    mark = marks[at]
    line = text[max(mark.start - _LOOK_BACK, 0) : mark.start].rpartition("\n")[2].rstrip()
    if not line:
        return False
    if line[-1] in _COLONS or text[mark.start - 1] in _OPENS_QUOTE:
        return not at or marks[at - 1].end < mark.start - 1
    return not mark.strong and normal(line.split()[-1]) in words().quoting


def _lists_options(answer: str) -> bool:
    """Whether the place of an answer has the choices of the question: "Options: red, blue"."""
    label = answer.lstrip(" \n-*•")[:_LOOK_BACK].partition(":")
    return bool(label[1]) and words().kind(label[0]) == "O"


def _pairs(text: str, segments: list[Mark], special: tuple[str, ...]) -> list[QAPair]:
    found: list[QAPair] = []
    pairs = pair_up(text, segments)
    questions, answers = (without_letters([pair[part] for pair in pairs]) for part in (0, 1))
    for user, assistant in zip(questions, answers, strict=True):
        # A question that asks for a choice, without one, counts as not answered.
        question, answer = resolved(user, assistant) or (user, "")
        # Strings of JSON may spell a special token in escapes.
        question, answer = (without_special_tokens(part, special).strip() for part in (question, answer))
        answer = "" if _lists_options(answer) else answer
        question = without_details(_TRAILING_SIGN.sub("", question))
        found.append(QAPair(field(question), field(without_repeats(answer), is_answer=True)))
    return found
