"""Parses raw model answers into clean question-answer pairs.

The text is split at marks (a question label, an answer label, a list number, a line start). Marks that are plausible in
their context open question and answer segments; questions are paired with the answers that follow them. An answer that
cannot be trusted raises `MalformedAnswer`, whose `reason` is one of `REASONS`:

empty            nothing is left after cleaning
no_questions     no question was found, such as in a refusal or a caption
placeholder      the model repeated the format ("Q: ... A: ...", "[answer]") instead of filling it in
missing_answers  there are enough questions, but too few have answers
too_few_pairs    there are fewer questions than required
repeated         there are enough pairs, but some are copies of others
truncated        generation stopped at the token limit before enough pairs were complete
echo             a free-form answer repeats its question or asks another one
"""
# ruff: noqa: RUF001 - Chinese and Japanese answers use full-width punctuation

import re
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

REASONS = (
    "empty", "no_questions", "placeholder", "missing_answers", "too_few_pairs", "repeated", "truncated", "echo",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question of the user and the answer of the assistant."""

    user: str
    assistant: str


class MalformedAnswer(Exception):  # noqa: N818 - an outcome that is counted and retried, not a fault
    """A raw answer without a usable dialogue; `reason` is one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Mark(NamedTuple):
    kind: Literal["Q", "A", "N", "L"]  # question label, answer label, number, line start
    start: int  # where the mark begins: the preceding text ends here
    end: int  # where the mark ends: its text begins here
    strong: bool  # at a place where a label is expected, not in the middle of a sentence
    word: str


# Quantifiers are bounded, and whitespace is collapsed before the search: the time is linear in the length of the text.
_JUNK = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff\ud800-\udfff]")
_BOLD = re.compile(r"(?<![\w*])\*{2,3}(?=[^\s*])|(?<=[^\s*])\*{2,3}(?![\w*])")
_HEADING = re.compile(r"(?:^|(?<=[.?？] ))(?:questions|answers|preguntas|respuestas) ?[:：]", re.I | re.M)
_SPECIAL = r"</?s>|<pad>|<unk>|<image>|<\|\w{1,20}\|>"
_OPENING = re.compile(rf"(?:\s|{_SPECIAL}|ASSISTANT:)*")
_STOP = re.compile(
    rf"{_SPECIAL}|(?:^|(?<=\s))(?:USER|ASSISTANT|HUMAN|SYSTEM) ?:|^(?:User|Assistant|Human) ?:"
    r"|###(?! ?(?i:question|answer|[qa]?\d))",
    re.M,
)
_MARK = re.compile(
    r"""
    (?:^(?:[-*•–#]{1,4}[ ])? | (?<=[ ]) | (?<=[。？！]))
    (?P<prefix>\(?\d{1,2}[.):、．]\s?)? [*_]?
    (?P<label>
        (?P<question>(?:question|pregunta|pergunta|domanda|frage|вопрос|问题|問題|问|問)(?:[ ]?\#?\d{1,2})?|[qp]\d{0,2})
      | (?:(?:(?:the|short|long)[ ])?answer(?:[ ]is)?|respuesta|resposta|r[ée]ponse|risposta|antwort|ответ
          |答案|回答|答)(?:[ ]?\#?\d{1,2})?|[ar]\d{0,2}
    )
    [*_]? (?P<sep>[ ]?[:：] | (?<=\d)(?:[.)]|[ ][–-](?=[ ])|(?=\n)) | (?<=[qa])\.(?=[ ])) [*_]?[ ]?
  | ^(?:[-*•–#]{1,4}[ ])? \(?(?P<number>\d{1,2}) (?:[.)](?=\s|[^\W\d])|[、．]) [ ]?
  # "There are 2. 2. What ...": of two numbers in a row the first is the end of an answer.
  | (?:(?<=[ ])|(?<=[。？！])) \(?(?P<inline>\d{1,2}) (?:[.)](?=\s)(?!\s\(?\d{1,2}[.)]\s)|[、．]) [ ]?
  | ^(?:[-*•–#]{1,4}[ ])?
    """,
    re.I | re.M | re.X,
)
# A quoted "Why?" inside a question does not end it; the full-width mark needs no space after it.
_QUESTION_END = re.compile(r"\?(?=\s|$)|？|\?[\"'”’»)]{1,3}(?=\s[^\sa-z]|$)")
_SENTENCE_END = "\n.?!:;…\"'”’»)。？！：；"
_WRAPPERS = {'"': '"', "“": "”", "*": "*", "_": "_", "`": "`"}
_BULLET = re.compile(r"(?:[-–—*•>:：] ){1,4}")
_PLACEHOLDER = re.compile(r"[\[<{][^\]>}]{0,40}(?:question|answer|pregunta|respuesta)[^\]>}]{0,40}[\]>}]\.?", re.I)


def parse_qa_list(text: str, *, pairs: int, truncated: bool) -> list[QAPair]:
    """The first `pairs` pairs of a text that lists questions with their answers.

    `truncated` says that generation stopped at the token limit; then an answer at the end of the text is incomplete and
    does not count. Raises MalformedAnswer if there are fewer pairs.
    """
    text, stopped = _clean(text)
    if not text:
        raise MalformedAnswer("empty")
    segments = _segments(text)
    if not any(segment.kind == "Q" for segment in segments):
        raise MalformedAnswer("no_questions")
    found = [QAPair(_field(user), _field(assistant)) for user, assistant in _pair_up(text, segments)]
    if truncated and not stopped and segments[-1].kind == "A":
        found = found[:-1]
    answered = [p for p in found if not _is_blank(p.user) and not _is_blank(p.assistant)]
    answered = [p for p in answered if _plain(p.user) != _plain(p.assistant)]
    unique: dict[tuple[str, str], QAPair] = {}
    for p in answered:
        unique.setdefault((_plain(p.user), _plain(p.assistant)), p)
    if len(unique) >= pairs:
        return list(unique.values())[:pairs]
    if truncated:
        raise MalformedAnswer("truncated")
    if not answered and any(_is_blank(p.user) or _PLACEHOLDER.fullmatch(p.assistant) for p in found):
        raise MalformedAnswer("placeholder")
    if len(answered) >= pairs:
        raise MalformedAnswer("repeated")
    enough = sum(segment.kind == "Q" for segment in segments) >= pairs
    raise MalformedAnswer("missing_answers" if enough else "too_few_pairs")


def parse_answer(text: str, *, question: str) -> str:
    """The answer to `question`, without its label and without additional turns that the model invented.

    Raises MalformedAnswer if there is no usable answer.
    """
    text, _ = _clean(text)
    # In the middle of a sentence only the word "Question" counts: prompts begin the next turn with it.
    marks = [m for m in _marks(text) if m.kind in "QA" and (m.strong or m.word.startswith("Question"))]
    start = 0
    if marks and marks[0].kind == "Q" and marks[0].start == 0:
        label = marks.pop(0)
        if not marks or _plain(text[label.end : marks[0].start]) != _plain(question):
            raise MalformedAnswer("echo")
        start = marks[0].start
    if marks and marks[0].kind == "A" and marks[0].start == start:
        start = marks.pop(0).end
    answer = _field(text[start : marks[0].start if marks else len(text)])
    if _is_blank(answer):
        raise MalformedAnswer("placeholder" if _PLACEHOLDER.fullmatch(answer) else "empty")
    if _plain(answer) == _plain(question):
        raise MalformedAnswer("echo")
    return answer


def without_special_tokens(text: str) -> str:
    """The text without words that a tokenizer would read as special tokens, such as a second `<image>` or `</s>`."""
    return re.sub(_SPECIAL, " ", text)


def _clean(text: str) -> tuple[str, bool]:
    """The model's own turn, with whitespace collapsed, and whether another turn followed it."""
    text = _JUNK.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = re.sub(r"[^\S\n]+", " ", text)
    text = re.sub(r" ?\n[ \n]*", "\n", text)
    if opening := _OPENING.match(text):
        text = text[opening.end() :]
    stop = _STOP.search(text)
    # Only now, without the asterisks, has "<**image>" become a special token.
    text = without_special_tokens(_HEADING.sub("", _BOLD.sub("", text[: stop.start()] if stop else text)))
    return re.sub(r" ?\n[ \n]*", "\n", text).strip(), stop is not None


def _marks(text: str) -> list[_Mark]:
    marks: list[_Mark] = []
    dotted = False  # "A." is a label only if the text has a "Q." too; otherwise it may be an initial
    number = 0
    for m in _MARK.finditer(text):
        start = m.start()
        before = text[max(start - 2, 0) : start].rstrip(" ")
        strong = not before or before[-1] in _SENTENCE_END
        word = m["label"] or ""
        if word:
            is_question = m["question"] is not None
            if m["sep"] == "." and not word[-1].isdigit():
                dotted = dotted or (is_question and strong)
                if not dotted:
                    continue
            if m["prefix"] and marks and marks[-1].kind == "A" and marks[-1].end == start:
                start = m.start("label")  # "A: 2. Q: ...": the number is the answer
            strong = strong or m["prefix"] is not None or word[-1].isdigit()
            marks.append(_Mark("Q" if is_question else "A", start, m.end(), strong, word))
        elif digits := m["number"] or m["inline"]:
            if strong or int(digits) == number + 1:
                number = int(digits)
                marks.append(_Mark("N", start, m.end(), strong, digits))
        else:
            marks.append(_Mark("L", start, m.end(), strong, ""))
    return marks


def _ends(marks: list[_Mark], text: str) -> list[int]:
    return [*(m.start for m in marks[1:]), len(text)][: len(marks)]


def _segments(text: str) -> list[_Mark]:
    """The question and answer segments of a text; each begins with a mark and ends at the next segment."""
    marks = _marks(text)
    labelled = any(m.kind == "Q" and m.strong for m in marks)
    marks = [m for m in marks if m.kind != "A" or m.strong or labelled]
    if not any(m.kind == "A" for m in marks):
        return _unlabelled_segments(text, marks)
    kinds = [*(m.kind for m in marks), ""]
    label_next = kinds[1:]  # the kind of the next mark that is more than a line start
    for i in reversed(range(len(marks) - 1)):
        label_next[i] = label_next[i + 1] if label_next[i] == "L" else label_next[i]
    segments: list[_Mark] = []
    for i, (mark, end) in enumerate(zip(marks, _ends(marks, text), strict=True)):
        last = segments[-1] if segments else None
        if mark.kind == "A":
            if last and (mark.strong or last.kind == "Q"):
                if last.kind == "A" and not last.strong:
                    segments.pop()  # "What is behind Exit A: the gate? A: ...": the first "A:" was part of the question
                segments.append(mark)
            continue
        between = last is None or last.kind == "A"
        answered = label_next[i] == "A"
        asks = text[mark.end : end].rstrip().endswith(("?", "？"))
        if mark.kind == "Q":
            opens = mark.strong or answered  # False for "the sign reads Q: exit"
        elif mark.kind == "N":
            opens = (between and answered) or (asks and not labelled)
        else:
            opens = between and asks and kinds[i + 1] == "A"
        if opens:
            segments.append(mark._replace(kind="Q"))
    return segments


def _unlabelled_segments(text: str, marks: list[_Mark]) -> list[_Mark]:
    """The segments of a text without answer labels.

    An answer is the text after a question mark, or an item that is not a question.
    """
    labels = [m for m in marks if m.kind == "Q" and m.strong]
    numbers = [m for m in marks if m.kind == "N"]
    lines = [m._replace(end=m.start) if m.kind == "N" else m for m in marks if m.kind in "NL"]
    segments: list[_Mark] = []
    for openers in (labels, numbers, lines):
        segments = []
        for opener, end in zip(openers, _ends(openers, text), strict=True):
            body = text[opener.end : end]
            line = body.partition("\n")[0].rstrip()
            asked = _QUESTION_END.search(body if openers is labels else line)
            if asked and not line.endswith(("?", "？")):
                split = asked.end()
            else:
                split = len(line) if asked or openers is labels else 0
            if split:
                segments.append(opener._replace(kind="Q"))
                opener = opener._replace(start=opener.end + split, end=opener.end + split)
            elif not body.strip():
                opener = opener._replace(end=opener.start)  # a number on its own is an answer, not a list item
            if text[opener.end : end].strip():
                segments.append(opener._replace(kind="A"))
        if any(segment.kind == "Q" for segment in segments):
            break
    return segments


def _pair_up(text: str, segments: list[_Mark]) -> list[tuple[str, str]]:
    """Pairs questions with their answers. Several questions in a row need the same number of answers in a row."""
    spans = [(s.kind, s.end, end) for s, end in zip(segments, _ends(segments, text), strict=True)]
    runs = [(kind, list(run)) for kind, run in groupby(spans, key=lambda span: span[0])]
    found: list[tuple[str, str]] = []
    for (kind, asked), (_, answered) in pairwise(runs):
        if kind != "Q":
            continue
        questions = [text[start:end] for _, start, end in asked]
        answers = [text[start:end] for _, start, end in answered]
        if len(asked) > 1 and len(answered) == 1 and len(lines := answers[0].strip().split("\n")) == len(asked):
            answers = lines  # unnumbered answers below the numbered questions
        elif len(asked) == 1 or len(answered) == 1:
            # Either one question, and parts of its answer looked like further items; or several questions, and only the
            # last one was answered.
            questions, answers = questions[-1:], [text[answered[0][1] : answered[-1][2]]]
        if len(questions) == len(answers):
            found += zip(questions, answers, strict=True)
    return found


def _field(text: str) -> str:
    text = " ".join(text.split())
    if bullet := _BULLET.match(text):
        text = text[bullet.end() :]
    while len(text) > 1 and _WRAPPERS.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold() or text


def _is_blank(text: str) -> bool:
    return not text.strip(" .…-–—_*[]()<>\"'") or _PLACEHOLDER.fullmatch(text) is not None
