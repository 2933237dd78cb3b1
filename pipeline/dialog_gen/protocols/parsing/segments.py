"""Splits a text into segments of questions and answers, and pairs them."""
# ruff: noqa: RUF001 - full-width punctuation

import re
from itertools import groupby, pairwise

from dialog_gen.protocols.parsing.choices import lists_choices
from dialog_gen.protocols.parsing.languages import ASKING
from dialog_gen.protocols.parsing.marks import QUESTION_MARKS, Mark, find_marks

# A quoted "Why?" inside a question does not end it; the full-width mark needs no space after it.
_QUESTION_END = re.compile(rf"[{ASKING}](?=\s|$)|？|[{ASKING}][\"'”’»)]{{1,3}}(?=\s[^\sa-z]|$)")
_NUMBER = re.compile(r"\W{0,4}(\d{1,2})")
_QUOTES = tuple("\"“«„'‘")
"""What begins speech in a story; a question in a plain list does not begin so."""


def find_segments(text: str) -> list[Mark]:
    """The question and answer segments of a cleaned text; each begins with a mark and ends at the next segment.

    A segment of the kind "E" ends an answer and belongs to no pair.
    """
    marks = find_marks(text)
    labelled = any(m.kind == "Q" and m.strong for m in marks)
    marks = [m for m in marks if m.kind not in "AE" or m.strong or labelled]
    marks = _without_choices(text, _with_explanations(marks))
    if not any(m.kind == "A" for m in marks):
        return _unlabelled_segments(text, marks)
    kinds = [*(m.kind for m in marks), ""]
    label_next = kinds[1:]  # the kind of the next mark that is more than a line start
    for i in reversed(range(len(marks) - 1)):
        label_next[i] = label_next[i + 1] if label_next[i] == "L" else label_next[i]
    segments: list[Mark] = []
    for i, (mark, end) in enumerate(zip(marks, segment_ends(marks, text), strict=True)):
        last = segments[-1] if segments else None
        if mark.kind == "E":
            if last:
                segments.append(mark)
            continue
        if mark.kind == "A":
            if last and (mark.strong or last.kind == "Q"):
                if last.kind == "A" and not last.strong:
                    segments.pop()  # "What is behind Exit A: the gate? A: ...": the first "A:" was part of the question
                segments.append(mark)
            continue
        between = last is None or last.kind != "Q"
        answered = label_next[i] == "A"
        asks = text[mark.end : end].rstrip().endswith(QUESTION_MARKS)
        if mark.kind == "Q":
            opens = mark.strong or answered  # False for "the sign reads Q: exit"
        elif mark.kind == "N":
            opens = (
                (between and answered) or (asks and not labelled) or _is_cut_item(text, mark, segments, label_next[i])
            )
        else:
            opens = between and asks and (kinds[i + 1] == "A" or (answered and lists_choices(text[end : end + 200])))
        if opens:
            segments.append(mark._replace(kind="Q"))
    return segments


def segment_ends(marks: list[Mark], text: str) -> list[int]:
    """Where each mark's text ends: at the next mark, or with the text."""
    return [*(m.start for m in marks[1:]), len(text)][: len(marks)]


def pair_up(text: str, segments: list[Mark]) -> list[tuple[str, str]]:
    """Pairs questions with their answers. Several questions in a row need the same number of answers in a row."""
    ends = segment_ends(segments, text)
    spans = [(s.kind, s.end, end, s.word) for s, end in zip(segments, ends, strict=True) if s.kind != "E"]
    runs = [(kind, list(run)) for kind, run in groupby(spans, key=lambda span: span[0])]
    found: list[tuple[str, str]] = []
    for (kind, asked), (_, answered) in pairwise(runs):
        if kind != "Q":
            continue
        questions = [text[start:end] for _, start, end, _ in asked]
        answers = [text[start:end] for _, start, end, _ in answered]
        if len(asked) > 1 and len(answered) == 1 and len(lines := answers[0].strip().split("\n")) == len(asked):
            answers = lines  # unnumbered answers below the numbered questions
        elif len(asked) == 1 or len(answered) == 1:
            # Either one question, and parts of its answer looked like further items; or several questions, and only the
            # last one was answered.
            whole = text[answered[0][1] : answered[-1][2]]
            if all(word for *_, word in answered):
                whole = next((answer for answer in answers if answer.strip()), "")  # the others repeat or extend it
            questions, answers = questions[-1:], [whole]
        if len(questions) == len(answers):
            found += zip(questions, answers, strict=True)
    return found


def _with_explanations(marks: list[Mark]) -> list[Mark]:
    """The marks with each explanation that stands in the place of an answer as an answer."""
    labels = [m for m in marks if m.kind not in "NL"]
    answers = any(m.kind == "A" for m in labels)
    resolved: dict[Mark, Mark | None] = {}
    before = ""
    for mark, after in zip(labels, [*labels, None][1:], strict=True):
        kind = mark.kind
        if kind == "D":
            resolved[mark] = mark._replace(kind="E") if mark.strong else None
            kind = before
        elif kind == "E":
            is_answer = not answers or (before == "Q" and (after is None or after.kind != "A"))
            kind = "A" if is_answer else "E"
            resolved[mark] = mark._replace(kind=kind) if is_answer or mark.strong else None
        before = kind
    return [kept for m in marks if (kept := resolved.get(m, m))]


def _without_choices(text: str, marks: list[Mark]) -> list[Mark]:
    """The marks without "A:" where it begins a list of choices, "A: a cat", then "B: a dog"."""
    labels = [m for m in marks if m.kind in "QA"]
    choices: set[Mark] = set()
    for mark, after in zip(labels, [*labels, None][1:], strict=True):
        if mark.kind != "A" or mark.word not in ("A", "a"):
            continue
        body = text[mark.start : after.start if after else len(text)]
        on_lines = re.match(r"\W{0,3}[Aa]\W[^\n]{1,200}\n\W{0,3}[Bb][.):]", body)
        if on_lines or (after and after.kind == "A" and after.strong and lists_choices(body)):
            choices.add(mark)
    return [m for m in marks if m not in choices]


def _is_cut_item(text: str, mark: Mark, segments: list[Mark], label_next: str) -> bool:
    """Whether a number goes on counting the questions, after which generation ended: "3. Q: ... A: left", "4. What"."""
    asked = next((s for s in reversed(segments) if s.kind == "Q"), None)
    if label_next or asked is None or not (mark.start == 0 or text[mark.start - 1] == "\n"):
        return False
    number = _NUMBER.match(text, asked.start, asked.end)
    return number is not None and mark.word == str(int(number[1]) + 1)


def _unlabelled_segments(text: str, marks: list[Mark]) -> list[Mark]:
    """The segments of a text without answer labels.

    An answer is the text after a question mark, or an item that is not a question.
    """
    labels = [m for m in marks if m.kind == "Q" and m.strong]
    numbers = [m for m in marks if m.kind == "N"]
    lines = [m._replace(end=m.start) if m.kind == "N" else m for m in marks if m.kind in "NL"]
    segments: list[Mark] = []
    for openers in (labels, numbers, lines):
        segments = []
        for opener, end in zip(openers, segment_ends(openers, text), strict=True):
            body = text[opener.end : end]
            line = body.partition("\n")[0].rstrip()
            asked = _QUESTION_END.search(body if openers is labels else line)
            if asked and openers is lines and line.startswith(_QUOTES):
                asked = None
            if asked and not line.endswith(QUESTION_MARKS):
                split = asked.end()
            else:
                split = len(line) if asked or openers is labels else 0
            if split:
                segments.append(opener._replace(kind="Q"))
                opener = opener._replace(start=opener.end + split, end=opener.end + split)
            elif not body.strip():
                opener = opener._replace(end=opener.start)  # a number on its own is an answer, not a list item
            if text[opener.end : end].strip():
                segments.append(opener._replace(kind="A", word=""))
        if any(segment.kind == "Q" for segment in segments):
            break
    return segments
