"""Finds the marks of a text: labels of questions and answers, numbers of list items, and line starts."""
# ruff: noqa: RUF001 - full-width punctuation

import re
import sys
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

from dialog_gen.protocols.parsing.languages import ASKING, Kind, normal, strongest, words
from dialog_gen.protocols.parsing.quotes import quoted


class Mark(NamedTuple):
    """A place in a text where something may begin."""

    kind: Kind | Literal["N", "L"]
    """A label (`languages.Kind`), a number, or a line start."""
    start: int
    """Where the mark begins: the preceding text ends here."""
    end: int
    """Where the mark ends: its text begins here."""
    strong: bool
    """At a place where a label is expected, not in the middle of a sentence."""
    word: str
    """The label without its separator, or the number."""


class _Label(NamedTuple):
    start: int
    kind: Kind
    is_letter: bool
    noun: str
    """The noun, or the letter, as it is written."""


QUESTION_MARKS = tuple(ASKING)
SENTENCE_END = f"\n.!:;…\"'”’»)。！：；।۔{ASKING}"
_LONGEST = 72
"""Characters of a label. The search looks back by this much from each colon."""
_MOST_WORDS = 7
_TOPIC_WORDS = 4
_LONGEST_NOTE = 40
_NOTES = {")": "(", "）": "（", "]": "["}
_BULLET = r"[-*•–#]{1,6} "
_SEPARATOR = re.compile(
    r"(?P<colon>[ ]?[:：﹕])[*_]{0,3}[ ]? | (?P<point>[.)])[*_]{0,3}[ ]? | (?P<dash>[ ][–—-])(?:[ ]|(?=\n))"
    r"| (?P<line>(?=\n)|\Z)",
    re.X,
)
_WORD = re.compile(r"[^ \n。？！]+")
_LETTER = re.compile(
    rf"(?:^[^\w\n]{{0,4}}|(?<=[.!।۔。！{ASKING}] ))(?:\d{{1,2}}[.)] ?)?"
    r"[*_]?([^\s\d:：.*_-]{1,3})[-_ ]?\d{0,2}[*_]? ?[:：]",
    re.M,
)
_REFERRED = re.compile(r"([^\W\d_]{3,14}) (?:[^\W\d_]{1,4} ){1,2}([^\W\d_])\d{1,2} ?[:：]")
"""An answer's label with the letter of its question, in any language: "Antwort auf F1:"."""
_SECOND = re.compile(r"([^\W\d_]{3,14}) \(?[Bb]\)?[*_]{0,3} ?(?:[:：.]|$)", re.M)
_COUNTING_LETTER = re.compile(r"\(?[A-Ha-h]\)?[*_]{0,3}")
_TOPIC = re.compile(
    rf"(?:{_BULLET})?[*_]?(?:\(?\d{{1,2}}[.):] ?(?:[^\W\d][\w-]{{1,20}} ){{1,3}}|(?:[^\W\d][\w-]{{2,20}} ){{1,2}})"
)
_ATTACHED = re.compile(r"\(?(?:\d{1,2}|[一二三四五六七八九十](?=、))[.):、．]")
_PREFIX = re.compile(
    r"(?:^(?:[-*•–#]{1,6}[ ])?|(?<=[ 。？！]))[*_]?"
    r"(?:\(?(?:(?P<digits>\d{1,2}|[一二三四五六七八九十](?=、))|(?P<roman>[ivx]{1,5})|(?P<letter>[a-h]))[.):、．]"
    r"|\[\d{1,2}\]|\#\d{1,2}[.):]?|\d{1,2}[ ][-–])\s?[*_]?\Z",
    re.I | re.M | re.X,
)
_NUMBER = re.compile(
    r"""
    ^(?:[-*•–#]{1,6}[ ])? \(?(?P<number>\d{1,2}) (?:[.)](?=\s|[^\W\d])|[、．]) [ ]?
  | ^(?:[-*•–#]{1,6}[ ])? (?:\[(?P<square>\d{1,2})\][.:]?|(?P<open>\d{1,2})(?::|[ ][-–]|/)(?=[ ])) [ ]?
  | ^(?:[-*•–#]{1,6}[ ])? \(?(?P<roman>[IVX]{1,5})[.)] (?=\s) [ ]?
  # "There are 2. 2. What ...": of two numbers in a row the first is the end of an answer.
  | (?:(?<=[ ])|(?<=[。？！])) \(?(?P<inline>\d{1,2}) (?:[.)](?=\s)(?!\s\(?\d{1,2}[.)]\s)|[、．]) [ ]?
  | (?<=[ ]) (?P<roman2>[IVX]{1,5})[.)] (?=\s) [ ]?
    """,
    re.M | re.X,
)
_LINE = re.compile(rf"^(?:{_BULLET})?", re.M)
_ROMAN_WORD = re.compile(r"(?:I{1,3}|IV|VI{0,3}|IX|X)")
_OF_ALL = re.compile(r"(?: \d{1,2}/\d{1,2})?")
"""What may follow a letter: "Q 1/3"."""
_ABBREVIATION = 4
"""Characters of "Ans", "Antw"."""
_COUNT = re.compile(r"(?<= )\d{1,2} ?[:：]")
_ROMAN = {"I": 1, "V": 5, "X": 10}


def find_marks(text: str) -> list[Mark]:
    """All marks of a cleaned text, in order. A label or number in a quotation is text and no mark."""
    labels = _without_named(text, _labels(text))
    quotations = quoted(text, [(mark.start, mark.end, mark.kind) for _, mark in labels])
    labels = [(begin, mark) for begin, mark in labels if not _is_within(begin, quotations)]
    taken = sorted(quotations + [(begin, mark.end) for begin, mark in labels])
    found = [mark for _, mark in labels]
    numbers = _counted(text, _outside(_NUMBER.finditer(text), taken))
    found += numbers
    taken = sorted(taken + [(mark.start, mark.end) for mark in numbers])
    found += [Mark("L", m.start(), m.end(), True, "") for m in _outside(_LINE.finditer(text), taken)]
    return sorted(found, key=lambda mark: (mark.start, mark.end))


def _labels(text: str) -> list[tuple[int, Mark]]:
    """The labels of a text, each with the place where its number or bullet begins."""
    letters, lettered = _letters(text), counts_by_letters(text)
    found: list[tuple[int, Mark]] = []
    floor = roman = 0
    dotted = False  # "A." is a label only if the text has a "Q." too; otherwise it may be an initial
    for separator in _SEPARATOR.finditer(text):
        stop = separator.start()
        if stop <= floor and found:
            continue
        if separator["point"] and _COUNT.match(text, separator.end()):
            continue  # "Pyt. 1:"
        if separator["point"] and not (text[stop - 1 : stop].isdigit() or text[stop : stop + 2] == ". "):
            continue
        if separator["colon"] and stop - floor < _LONGEST and _is_topic(text, found, floor, stop):
            begin, mark = found.pop()
            floor = separator.end()
            found.append((begin, mark._replace(end=floor)))
            continue
        noted = _before_note(text, stop, floor) if separator["colon"] else None
        label = _look_back(text, noted or stop, floor, letters, lettered=lettered)
        if label is None and separator["colon"] and (noted := _before_topic(text, stop, floor)):
            label = _look_back(text, noted, floor, letters, lettered=lettered)
            label = label if label and label.kind == "Q" else None
        if label is None or label.kind == "O":
            continue
        begin, value, is_prefixed = _beginning(text, label, floor, roman)
        before = text[max(begin - 2, 0) : begin].rstrip(" ")
        strong = not before or before[-1] in SENTENCE_END
        if (noted and not strong) or (label.kind == "D" and not _is_detail(text, begin, separator)):
            continue
        raw = text[label.start : noted or stop].strip("*_")
        numbered = raw[-1:].isdigit()
        if separator["point"] and numbered:
            is_label = not raw.rpartition(" ")[2].startswith("(")  # the colon of "Question (1):" comes next
        elif separator["point"]:
            ends = raw[-1:].casefold() in ("q", "a") if label.is_letter else strong and raw.endswith(label.noun)
            # "Ans. red" is a label below a question.
            below = label.kind == "A" and not label.is_letter and _follows_question(text, begin, found, len(label.noun))
            is_label = separator["point"] == "." and ends and (dotted or (strong and (label.kind == "Q" or below)))
            dotted = dotted or is_label
        elif separator["colon"] or (numbered and stop < len(text)):
            is_label = True
        else:  # without a separator it has a line of its own, or begins one: "Answer - red"
            on_line = "\n" in text and (begin == 0 or text[begin - 1] == "\n")
            is_label = on_line and not label.is_letter and not raw[:1].islower()
        if not is_label:
            continue
        start = begin
        if is_prefixed and found and found[-1][1].kind == "A" and found[-1][1].end == begin:
            start = label.start  # "A: 2. Q: ...": the number is the answer
        roman = value or roman
        floor = separator.end()
        strong = strong or is_prefixed or numbered
        found.append((begin, Mark(label.kind, start, floor, strong, label.noun)))
    return found


def _without_named(text: str, labels: list[tuple[int, Mark]]) -> list[tuple[int, Mark]]:
    """The labels without those that a sentence names: "Q: and A: are written on it"."""
    named = {
        mark
        for (_, first), (_, second) in pairwise(labels)
        if first.kind == "Q" and second.kind == "A" and not second.strong
        if second.start - first.end < _LONGEST and normal(text[first.end : second.start].strip()) in words().joining
        for mark in (first, second)
    }
    return [(begin, mark) for begin, mark in labels if mark not in named]


def _is_topic(text: str, found: list[tuple[int, Mark]], floor: int, stop: int) -> bool:
    """Whether a colon ends the topic of a question after a dash: "Question 1 - Color: What color is it?"."""
    if (
        not found
        or found[-1][1].kind != "Q"
        or found[-1][1].end != floor
        or text[max(floor - 2, 0) : floor - 1] not in "-–—"
    ):
        return False
    topic = text[floor:stop].strip("*_ ")
    return topic[:1].isupper() and topic.count(" ") < _TOPIC_WORDS and "\n" not in topic and not _asks(topic)


def _before_note(text: str, stop: int, floor: int) -> int | None:
    """Where a label ends before a note in parentheses, as in "Question 1 (color):"; None if there is no note."""
    opening = _NOTES.get(text[stop - 1 : stop])
    if opening is None:
        return None
    opens = text.rfind(opening, max(floor, stop - _LONGEST_NOTE), stop)
    if opens <= floor or not any(map(str.isalpha, text[opens + 1 : stop - 1])):
        return None
    return opens - 1 if text[opens - 1] == " " else opens


def _before_topic(text: str, stop: int, floor: int) -> int | None:
    """Where a label ends before its topic, as in "Question about color:"; None if there is no topic."""
    low = max(floor, stop - _LONGEST_NOTE)
    about = words().about.search(text, max(low, text.rfind("\n", low, stop)), stop)
    return about.start() if about else None


def _follows_question(text: str, begin: int, found: list[tuple[int, Mark]], length: int) -> bool:
    """Whether what begins here stands below a question, or is an abbreviation at the beginning of the text."""
    if begin == 0:
        return length <= _ABBREVIATION
    asked = bool(found) and found[-1][1].kind == "Q"
    return text[begin - 1] == "\n" and (asked or text[max(begin - 3, 0) : begin].rstrip().endswith(QUESTION_MARKS))


def _is_detail(text: str, begin: int, separator: re.Match[str]) -> bool:
    """Whether a detail such as "Category: color" has a line of its own, and is not the text of a label above it."""
    above = text[:begin].rstrip()[-1:]
    return bool(separator["colon"]) and (begin == 0 or text[begin - 1] == "\n") and above not in (":", "：")


def _letters(text: str) -> dict[str, Kind]:
    """The one-letter labels that count in this text: those of other languages only if both of a pair occur."""
    known = words()
    seen = list(dict.fromkeys(normal(letter) for letter in _LETTER.findall(text)))
    letters = dict(known.letters)
    taken = {known.letters[letter] for letter in seen if letter in known.letters}
    for question, answer in known.pairs:
        if question not in seen or answer not in seen or seen.index(question) > seen.index(answer):
            continue
        if (question in letters or "Q" not in taken) and (answer in letters or "A" not in taken):
            letters |= {question: "Q", answer: "A"}
    asked = {question for question, _ in known.pairs}
    for noun, letter in _REFERRED.findall(text):
        if known.nouns.get(normal(noun)) == "A" and (question := normal(letter)) in asked:
            letters.setdefault(question, "Q")
    return letters


def counts_by_letters(text: str) -> bool:
    """Whether the questions of a text are counted by letters, "Question A", "Question B"."""
    return any(words().nouns.get(normal(noun)) == "Q" for noun in _SECOND.findall(text))


def _look_back(text: str, stop: int, floor: int, letters: dict[str, Kind], *, lettered: bool) -> _Label | None:
    """The label that ends at `stop`: nouns with the qualifiers, links and numbers around them."""
    known = words()
    low = max(floor, stop - _LONGEST)
    low = max(low, text.rfind("\n", low, stop) + 1)
    last = normal(text[max(low, text.rfind(" ", low, stop) + 1) : stop])
    lettered = lettered and len(last) <= len("(b)")
    if not (last in known.ends or lettered or not last.isascii() or last[:1].isdigit() or last.startswith("(")):
        return None
    kinds: list[Kind] = []
    start, noun, is_letter, linked = stop, "", False, False
    every = list(_WORD.finditer(text, low, stop))[-_MOST_WORDS:]
    for at, found in reversed(list(enumerate(every))):
        first = found.start()
        if first and text[first - 1] not in " \n。？！":
            break
        word = found[0]
        name = normal(word)
        attached = _ATTACHED.match(word)
        if not kinds and attached and attached.end() < len(word) and name not in known.nouns:
            name = normal(word[attached.end() :])
        else:
            attached = None
        counts = lettered and not kinds and at and _COUNTING_LETTER.fullmatch(word)
        if counts and normal(every[at - 1][0]) in known.nouns:
            continue
        needed = known.needed.get(name)
        if needed and not (at and normal(every[at - 1][0]) == needed):
            break
        if name in known.nouns and (not is_letter or (linked and known.nouns[name] == "A")):
            kinds.append(known.nouns[name])
            start, noun, is_letter, linked = first, word, False, False  # "Answer to Q1" is an answer
        elif not kinds and first + len(word) == stop and name not in letters and _ROMAN_WORD.fullmatch(word):
            continue
        elif (
            name in letters
            and not kinds
            and (_OF_ALL.fullmatch(text, first + len(word), stop) or _is_counted(text, first, first + len(word), stop))
        ):
            kinds.append(letters[name])
            start, noun, is_letter = first, word, True
        elif kinds and letters.get(name) == "Q" and not is_letter and word[-1].isdigit():
            kinds.append("Q")
            start = first  # "Q1 answer"
        elif name == "a" and kinds and not linked and not text[low:first].strip(" -*•–#"):
            start = first  # "A possible question", which begins a line
        elif name in known.leading:
            start = first if kinds and not linked else start
        elif name in known.inner and is_letter:
            linked = True
        elif (
            name not in known.inner and not (name == "" and (word == "#" or any(map(str.isdigit, word))))
        ) or is_letter:
            break
        if attached:
            break
    kind = strongest(kinds)
    if kind is None:
        return None
    if not is_letter and kind in ("Q", "A") and text[stop : stop + 1] in ":： " and start > low:
        line = text[low:start]
        if (low == 0 or text[low - 1] == "\n") and _TOPIC.fullmatch(line) and not _asks(line):
            topic = re.search(r"[^\W\d]", line)
            if topic and not line[topic.start()].islower():
                start = low + topic.start()
    return _Label(start, kind, is_letter, noun.strip("*_"))


def _is_counted(text: str, start: int, end: int, stop: int) -> bool:
    """Whether a letter has a number after a space, as in "Q 1: X?". "A 4:3 screen" has no label."""
    before = text[max(start - 2, 0) : start].rstrip(" ")
    is_place = not before or before[-1] in f"{SENTENCE_END}-*•–#_"
    number = text[end:stop].strip()
    after = text[stop : stop + 4].lstrip()
    is_label = after[:1] in (":", "：") and not after[1:].lstrip()[:1].isdigit()
    return is_place and is_label and number.isdecimal() and len(number) <= 2 and not text[start:end].islower()


def _asks(words_before: str) -> bool:
    return any(word.casefold() in words().asking for word in words_before.split())


def _beginning(text: str, label: _Label, floor: int, roman: int) -> tuple[int, int, bool]:
    """Where a label's number or bullet begins; the value of a Roman number; and whether there is a number."""
    start = label.start
    if _ATTACHED.match(text, start, start + 5) and not text[start : start + 1].isalpha():
        return _with_bullet(text, start, floor), 0, True
    prefix = _PREFIX.search(text, max(floor, start - 14), start)
    if not prefix:
        return _with_bullet(text, start, floor), 0, False
    begin = _with_bullet(text, prefix.start(), floor)
    before = text[max(begin - 2, 0) : begin].rstrip(" ")
    strong = not before or before[-1] in SENTENCE_END
    value = _roman(prefix["roman"]) if prefix["roman"] else 0
    ends_line = "\n" in prefix[0] and before[-1:] not in ("", "\n")  # "It is Mr. A.", and a label on the next line
    if (prefix["letter"] and (ends_line or not strong)) or (prefix["roman"] and not (strong or value == roman + 1)):
        return start, 0, False
    return begin, value, True


def _with_bullet(text: str, start: int, floor: int) -> int:
    line = max(floor, text.rfind("\n", max(0, start - 8), start) + 1)
    return line if re.fullmatch(rf"(?:{_BULLET})?[*_]?", text[line:start]) else start


def _roman(number: str) -> int:
    """The value of a Roman number up to 39; 0 for other words of these letters."""
    values = [_ROMAN[letter] for letter in number.upper()]
    value = sum(-v if any(after > v for after in values[i + 1 : i + 2]) else v for i, v in enumerate(values))
    tens, rest = divmod(value, 10)
    units = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    return value if "X" * tens + units[rest] == number.upper() else 0


def _is_within(place: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a place is in one of the spans, which are in order and do not overlap."""
    at = bisect_right(spans, (place, sys.maxsize)) - 1
    return at >= 0 and place < spans[at][1]


def _outside(found: Iterator[re.Match[str]], taken: list[tuple[int, int]]) -> list[re.Match[str]]:
    """The matches that do not begin within one of the spans, which are in order."""
    kept: list[re.Match[str]] = []
    at = 0
    for match in found:
        while at < len(taken) and taken[at][1] <= match.start():
            at += 1
        if at == len(taken) or match.start() < taken[at][0]:
            kept.append(match)
    return kept


def _counted(text: str, numbers: list[re.Match[str]]) -> list[Mark]:
    """The numbers of list items: those at a place for one, and in the middle of a sentence those that count on."""
    marks: list[Mark] = []
    number = roman = 0
    for m in numbers:
        start = m.start()
        before = text[max(start - 2, 0) : start].rstrip(" ")
        strong = not before or before[-1] in SENTENCE_END
        if digits := m["number"] or m["inline"] or m["square"] or m["open"]:
            if not strong and int(digits) != number + 1:
                continue
            number = int(digits)
        else:
            digits = m["roman"] or m["roman2"]
            if _roman(digits) != roman + 1 or (roman == 0 and not strong):
                continue
            roman += 1
        marks.append(Mark("N", start, m.end(), strong, digits))
    return marks
