"""The forms of English questions, and which answers can be meant as an answer to them (TAP-C, arXiv 2203.07190)."""

import re
from typing import Literal

Form = Literal["yes/no", "choice", "number", "other"]
"""What a question asks for: "choice" names its answers, as in "Is the star small or large?"."""


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


COPULAS = word_set("is are was were")
AUXILIARIES = COPULAS | word_set("do does did can could has have had will would should may might must")
# What is left of auxiliaries before "n't".
_WHOLE = {"ca": "can", "wo": "will"}
_NEGATED = re.compile(rf"^({'|'.join(sorted(AUXILIARIES | _WHOLE.keys()))})n['\u2019]t\b", re.IGNORECASE)
_IS = re.compile(r"^(what|who|where|when|why|how)['\u2019]s\b", re.IGNORECASE)
# Words about the image that say nothing: "In the image, is there a dog?", "Is the man in the photo wearing a hat?"
_IMAGE = "(?:the|this) (?:image|picture|photo|scene)"
_QUESTION = rf"(?:(?:{'|'.join(sorted(AUXILIARIES))})(?:n['\u2019]t)?|(?:what|who|which|where|how)(?:['\u2019]s)?)\b"
_IN_FRONT = re.compile(rf"^(?:in|on) {_IMAGE},? (?={_QUESTION})", re.IGNORECASE)
_BETWEEN = re.compile(
    rf"(?<=\w)(?<!\bis)(?<!\bare)(?<!\bwas) in {_IMAGE}"
    r"(?= (?:\w+ing\b|is\b|are\b|ha(?:s|ve)\b|(?!frame|album|book|booth|window|gallery)\w+$))",
    re.IGNORECASE,
)
YES_NO = word_set("yes no")
_COUNTED = tuple(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty""".split()  # noqa: SIM905 - a list of twenty-one lines is no better
)
NUMBER_WORDS = frozenset(_COUNTED) | word_set("thirty forty fifty sixty seventy eighty ninety hundred dozen")
# Amounts that leave open how many: "several" may be true where "many" is.
_VAGUE = word_set(
    """many few several some lots lot plenty multiple numerous dozens hundreds thousands all most half both bunch group
    crowd handful countless enough"""
)
_AMOUNTS = (
    NUMBER_WORDS
    | _VAGUE
    | word_set("none no nobody nothing noone couple pair trio everyone everybody thousand million")
)
_OF_A_CHOICE = YES_NO | word_set("both neither either none")
# What says the same; a word that is not here says only what itself does.
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905 - as above
_SAME = {
    **{word: str(number) for number, word in enumerate(_COUNTED)},
    **{word: str(10 * number) for number, word in enumerate(_TENS, 2)},
    **dict.fromkeys(("none", "nobody", "noone", "nothing", "neither"), "0"),
    "hundred": "100",
    "dozen": "12",
    "couple": "2",
    "pair": "2",
    "grey": "gray",
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "feet": "foot",
    "buses": "bus",
}
# Answers that say that nobody can tell: neither true nor false of an image.
_TELL = "(?:tell|say|see|determine)"
_IN_IT = "(?: (?:in|from|on) (?:the|this) (?:image|picture|photo).*)?"
_NO_ANSWER = re.compile(
    r"(?:.*\b(?:is|are|was|were|it['\u2019]s) )?(?:"
    r"(?:not|cannot|can['\u2019]t)(?: be)? (?:visible|shown|sure|clear|known|specified|seen|applicable|pictured"
    rf"|mentioned|possible to {_TELL}|stated|legible|determined?|told|read|identified)"
    rf"|unclear|unknown|unsure|uncertain|unanswerable|(?:difficult|hard|impossible) to {_TELL}"
    rf"|not enough information|no (?:information|way to tell)|n/a|idk){_IN_IT}"
    rf"|.*\b(?:i|we|it|you) (?:do(?:n['\u2019]t| not) know|can(?:not|['\u2019]t| not) {_TELL}.*)"
    rf"|.*\bunable to (?:{_TELL}|identify|answer)\b.*|.*\bimage does(?: not|n['\u2019]t) \w+.*"
)
# A sentence is no answer that a statement could name: it is one.
_WORDS = r"(?: (?!who|that|which|where)[\w'-]+)"
_SENTENCE = re.compile(
    r"(?:(?:it|he|she|there|that|this)['\u2019]s|(?:they|these|those|we)['\u2019]re"
    rf"|(?:there|it|he|she|they|this|these|those|(?:the|an?|his|her|its|their){_WORDS}{{1,4}}?)"
    r" (?:is|are|was|were|has|have|appears?|seems?)"
    rf"|(?:[0-9]+|two|three|four|some|several|people|men|women|children){_WORDS}{{0,3}}? (?:are|were))\b.+"
)
_ARTICLES = word_set("a an the")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# "Yes, it is", "no there is not", "Nope"; but not "no one", "no-parking" and "No. 7".
_YES_NO_FIRST = re.compile(
    r"[\"'\u2018\u201c]?(yes|yeah|yep|no|nope)(?:[\"'\u2019\u201d]?|\s*(?:[,.;:!\u2026\u2013\u2014]|-(?!\w))(?!\s*[0-9]).*"
    r"|\s+(?:it|he|she|they|there|this|that|these|those|the|i|we|you|in)\b.*)",
    re.DOTALL,
)
# Bounds and estimates leave open how many, too.
_ABOUT = re.compile(
    r"\b(?:more|less|fewer|over|under|about|around|least|most|almost|nearly|approximately|up to|or)\b"
    r"|[0-9]\s*[-\u2013+]"
)
# Questions whose answer is no number; others, such as "What number is on the bus?", may have any.
_NO_NUMBER = re.compile(
    r"(?:what|which) (?:colou?r|shape|texture|pattern|material|animal|breed|fruit|sport|gender)s?\b(?! number)"
    "|where|who|why"
)


def tidy(text: str) -> str:
    """A question or an answer with single spaces and without marks at its end."""
    return " ".join(text.split()).rstrip(" ?.!")


def answer_key(answer: str) -> str:
    """The text by which equal answers are found: `tidy`, in lower case; "yes" for "Yes, it is.", and so for no."""
    key = tidy(answer).lower()
    whole = _YES_NO_FIRST.fullmatch(key)
    return ("yes" if whole[1].startswith("y") else "no") if whole else key


def meaning(answer: str) -> frozenset[str]:
    """The words of an answer, by which answers that say the same are found: "Two dogs" and "2 dog" have the same.

    Articles are left out, and numbers are digits. Synonyms such as "couch" and "sofa" stay different.
    """
    key = _THOUSANDS.sub("", answer_key(answer)).replace("no one", "nobody")
    words = [_SAME.get(word, word) for word in _words(key) if word not in _ARTICLES]
    if len(words) > 1:  # "no dogs"
        words = ["0" if word == "no" else word for word in words]
    return frozenset(word[:-1] if re.search(r"..[^s]s$", word) else word for word in words) or word_set(answer)


def is_number(answer: str) -> bool:
    """Whether an answer has a number in it, in digits or as a word."""
    return any(word[0].isdigit() or word in NUMBER_WORDS for word in _words(answer))


def expanded(question: str) -> str:
    """A question as rules read it: "Isn't the cat in the image black?" is answered as "Is the cat black?" is."""
    question = _BETWEEN.sub("", _IN_FRONT.sub("", question))
    question = _NEGATED.sub(lambda found: _WHOLE.get(found[1].lower(), found[1]), question)
    return _IS.sub(r"\1 is", question)


def form_of(question: str) -> Form:
    """The form of a question, by its first words; "other" also for a text that is no question."""
    words = expanded(tidy(question)).lower().split()
    first = words[0] if words else ""
    if first in AUXILIARIES:
        return "choice" if "or" in words else "yes/no"
    if words[:2] == ["how", "many"]:
        return "number"
    return "other"


def is_vague(answer: str) -> bool:
    """Whether an answer is an amount that leaves open how many, such as "several" or "more than 10"."""
    words = set(_words(answer))
    return bool(_VAGUE & words) or (is_number(answer) and bool(_ABOUT.search(answer.lower())))


def is_sentence(answer: str) -> bool:
    """Whether an answer is a whole sentence, such as "The cat is on the bed."."""
    return bool(_SENTENCE.fullmatch(answer_key(answer)))


def is_definite(answer: str) -> bool:
    """Whether an answer says one thing: it is no whole sentence, and does not say that nobody can tell."""
    return not (is_sentence(answer) or _NO_ANSWER.fullmatch(answer_key(answer)))


def fits(question: str, answer: str) -> bool:
    """Whether an answer is of the form that the question asks for; True wherever the form does not tell.

    What says that it is no answer, such as "not visible", fits no question.
    """
    key, form = answer_key(answer), form_of(question)
    if _NO_ANSWER.fullmatch(key):
        return False
    if form == "yes/no":
        return key in YES_NO
    if form == "choice":
        return key in _OF_A_CHOICE or set(_words(key)) <= set(_words(question))
    if form == "number":
        return key not in YES_NO and (is_number(key) or bool(set(_words(key)) & _AMOUNTS))
    no_number = _NO_NUMBER.match(tidy(question).lower())
    return key not in YES_NO and not (no_number and re.fullmatch(r"[0-9.,]+", key))


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())
