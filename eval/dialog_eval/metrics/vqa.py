r"""The accuracy of VQA (arXiv 1505.00468): compares an answer with those of ten people.

"official" mode gives the results of the published code, github.com/GT-Vision-Lab/VQA at a013f00,
PythonEvaluationTools/vqaEvaluation/vqaEval.py, run under Python 3. Its quirks are kept:

- If the ten answers are all the same, neither they nor the prediction are normalised: "Yes" then misses "yes".
- A punctuation mark becomes a space; but if it is next to a space anywhere in the text, all its occurrences are
  removed. If a comma is between two digits, every mark in the text is removed: "1,000-mile" -> "1000mile",
  "10-12" -> "10 12".
- The look-behind of the period's pattern is mistyped, `(?!<=\d)(\.)(?!\d)`, and excludes nothing: a period is removed
  unless a digit follows. A flag is passed in place of the count, so only the first 32 periods are removed.
- Articles are removed even if nothing else is left: "a" matches "the".
- The contractions with a capital I match nothing because the text is in lower case; "lets" and "shes" stay unchanged;
  "somebody'd" loses its apostrophe.

"clean" mode does what visualqa.org/evaluation says about the code: both sides are always normalised; a comma between
digits is removed; any other mark becomes a space; every period is removed unless a digit follows; all contractions get
their apostrophes (typographic ones are read as "'"). If nothing would be left of an answer, only its case and its
spaces are normalised.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

Mode = Literal["official", "clean"]

PEOPLE = 10

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)
_CLEAN_MARKS = str.maketrans(dict.fromkeys(_MARKS, " "))

# Spelled correctly, with all apostrophes.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am might've mightn't mightn't've
    must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've
    something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas
    wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd
    you'd've you'll you're you've
"""


def _with_one_apostrophe_missing(words: Iterable[str]) -> dict[str, str]:
    """Maps each spelling that lacks one of a word's apostrophes to the word."""
    return {word[:at] + word[at + 1 :]: word for word in words for at, letter in enumerate(word) if letter == "'"}


_OFFICIAL_WORDS = _with_one_apostrophe_missing(_CONTRACTIONS.split()) | {"somebody'd": "somebodyd"}
_CLEAN_WORDS = _with_one_apostrophe_missing([*_CONTRACTIONS.lower().split(), "let's", "she's", "somebody'd"])


def normalize_answer(text: str, mode: Mode = "official") -> str:
    """Normalises an answer: lower case, no articles, digits for number words, apostrophes in contractions.

    `mode` "official" is the published code's normalisation, "clean" the documented one; the module's docstring
    describes both. `vqa_accuracy` decides whether an answer is normalised at all. Raises ValueError for another mode.
    """
    if mode == "official":
        return _normalize_official(text)
    if mode == "clean":
        return _normalize_clean(text)
    raise ValueError(f'mode must be "official" or "clean", not {mode!r}')


def vqa_accuracy(prediction: str, ten_answers: Sequence[str], mode: Mode = "official") -> float:
    """The accuracy (0 to 1) of an answer: the mean, over the ten sets of nine people, of min(matches / 3, 1).

    `ten_answers`: the answers of ten people, as read from the annotations. In "official" mode nothing is normalised if
    all ten are the same; in "clean" mode both sides always are. (arXiv 1505.00468, section 3, and
    visualqa.org/evaluation for the averaging.)

    Raises ValueError unless there are ten answers, and for an unknown mode.
    """
    if isinstance(ten_answers, str) or len(ten_answers) != PEOPLE:
        raise ValueError(f"the accuracy is defined over {PEOPLE} people's answers, got {ten_answers!r}")
    people = [_tidy(answer) for answer in ten_answers]
    said = _tidy(prediction)
    if mode != "official" or len(set(people)) > 1:
        people = [normalize_answer(answer, mode) for answer in people]
        said = normalize_answer(said, mode)
    return ten_choose_nine(people.count(said))


def ten_choose_nine(matches: int) -> float:
    """The accuracy if `matches` of ten people agree with the answer: 0, 0.3, 0.6, 0.9, and 1 from 4 on.

    This is the closed form of the mean over the ten sets of nine: `matches` of the sets lack one who agrees, so for m =
    1, 2, 3 it is (m * (m - 1) / 3 + (10 - m) * m / 3) / 10 = 0.3 m.

    Raises ValueError unless 0 <= matches <= 10.
    """
    if not 0 <= matches <= PEOPLE:
        raise ValueError(f"of {PEOPLE} people 0 to {PEOPLE} can agree, not {matches}")
    return (0.0, 0.3, 0.6, 0.9, 1.0)[min(matches, 4)]


def _tidy(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


# Cached because answers repeat: within the ten of a question, and across a dataset.
@lru_cache(maxsize=1 << 16)
def _normalize_official(text: str) -> str:
    text = _tidy(text)
    joined = _COMMA_IN_NUMBER.search(text) is not None
    without = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        without = without.replace(mark, "" if joined or beside_space else " ")
    without = _PERIOD.sub("", without, count=_MOST_PERIODS)
    return " ".join(_words(without, _OFFICIAL_WORDS))


@lru_cache(maxsize=1 << 16)
def _normalize_clean(text: str) -> str:
    text = " ".join(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower().split())
    without = _COMMA_IN_NUMBER.sub("", text).translate(_CLEAN_MARKS)
    return " ".join(_words(_PERIOD.sub("", without), _CLEAN_WORDS)) or text


def _words(text: str, contractions: dict[str, str]) -> list[str]:
    """Splits a text into lower-case words without articles."""
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return [contractions.get(word, word) for word in words if word not in _ARTICLES]
