"""The words of labels, headings and closings of all languages, read from `languages.toml`."""

# ruff: noqa: RUF001 - full-width punctuation

import functools
import re
import tomllib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, TypeAdapter

Kind: TypeAlias = Literal["Q", "A", "E", "O", "D"]
"""What a label announces: a question, its answer, an explanation of it, the options of a question, or a detail."""

GREEK_MARK = "\u037e"
"""Greek's own question mark, which looks like a semicolon and is mostly written as one."""
ASKING = f"?？؟{GREEK_MARK}"
"""The question marks of all languages."""
_NUMBER = re.compile(r"(?<![\d.,-])[#(\[]{0,2}\d{1,2}(?:/\d{1,2})?[)\]]?(?!\d)")
_AFTER_DASH = re.compile(r"(?<=[^\W\d_])[-_]\d{1,2}$")
_CJK_NUMBER = re.compile(r"(?<=[\u3040-\u9fff])[一二三四五六七八九十]{1,2}(?=$|[个個])|^[一二三四五六七八九十]{1,2}$")
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u3000-\u9fff\uac00-\ud7af]")
"""In these scripts there are no spaces between words, or words have endings."""
_CJK = "\u1100"
"""From this character on, scripts put no spaces between words (Hangul, kana, Chinese)."""


class Language(BaseModel):
    """The words of one language; `languages.toml` explains the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()
    letters: tuple[str, ...] = ()
    explanation: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    apologies: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    assistants: tuple[str, ...] = ()
    quoting: tuple[str, ...] = ()
    about: tuple[str, ...] = ()
    joining: tuple[str, ...] = ()
    qualifiers: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    closings: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    farewells: tuple[str, ...] = ()
    asking: tuple[str, ...] = ()
    inquiring: tuple[str, ...] = ()
    pointing: tuple[str, ...] = ()
    rhetorical: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Inquiry:
    """The words of one language by which its questions are told from others."""

    first: frozenset[str]
    anywhere: frozenset[str]
    pointing: frozenset[str]
    rhetorical: frozenset[str]
    rhetorical_endings: tuple[str, ...]
    parts: tuple[str, ...]
    """Words of `anywhere` in a script without spaces between words."""
    rhetorical_parts: tuple[str, ...]

    def is_of_what_is_seen(self, sentence: str, said: Sequence[str]) -> bool:
        """Whether a question has a word that points to what is seen, and none that makes it rhetorical."""
        if self.pointing and self.pointing.isdisjoint(said):
            return False
        # A word of negation that asks does not negate: "Có con mèo không?"
        for part in self.parts if self.rhetorical_parts else ():
            sentence = sentence.replace(part, " ")
        told = said[:-1] if said[-1] in self.anywhere else said
        return (
            self.rhetorical.isdisjoint(told)
            and not any(word.endswith(self.rhetorical_endings) for word in told)
            and not any(part in sentence for part in self.rhetorical_parts)
        )


@dataclass(frozen=True, slots=True)
class Words:
    """The words of all languages, as `normal` writes them, and the expressions made of them."""

    nouns: dict[str, Kind]
    leading: frozenset[str]
    """Words that may begin a label."""
    inner: frozenset[str]
    """Words that may only follow such a word or precede a noun."""
    letters: dict[str, Kind]
    """One-letter labels; those of `pairs` count only in texts that have both of a pair."""
    pairs: frozenset[tuple[str, str]]
    heading: re.Pattern[str]
    """Matches a heading with its colon, or alone on its line."""
    closing: re.Pattern[str]
    """Matches at the beginning of a line about the dialogue."""
    ending: re.Pattern[str]
    """Matches a whole last line that only ends the dialogue, counts its pairs, or tags it."""
    farewell: re.Pattern[str]
    """Matches at the beginning of a sentence to the reader."""
    refusal: re.Pattern[str]
    """Matches at the beginning of a refusal to answer."""
    asking: frozenset[str]
    """The first words of questions in all languages."""
    inquiries: dict[str, tuple[Inquiry, ...]]
    """The languages of each word that asks."""
    unspaced: tuple[Inquiry, ...]
    """The languages that have words in a script without spaces."""
    speakers: dict[str, Kind]
    """The names of those who ask and who answer in a transcript."""
    ends: frozenset[str]
    """The last words of labels."""
    needed: dict[str, str]
    """Nouns that are labels only after another word."""
    about: re.Pattern[str]
    """Matches between a question's label and its topic."""
    quoting: frozenset[str]
    """Words after which a label in a sentence is quoted."""
    joining: frozenset[str]
    """Words between two labels that a sentence names."""

    def kind(self, label: str) -> Kind | None:
        """What a label announces that is known to be one on its own, such as a key or the heading of a column."""
        words = [normal(word) for word in re.split(r"[\s_]+", label.strip(" :：*_"))]
        kinds: dict[str, Kind] = {}
        for word in words:
            if kind := self.nouns.get(word) or (self.letters[word] if word in ("q", "a") else None):
                kinds[word] = kind
        if any(word and word not in kinds and word not in self.leading | self.inner for word in words):
            return None
        return strongest(kinds.values())


def strongest(kinds: Iterable[Kind]) -> Kind | None:
    """What a label with several nouns announces: an "answer to question 1" is an answer."""
    return min(kinds, key="DOEAQ".index, default=None)


@functools.lru_cache(maxsize=1 << 14)
def normal(word: str) -> str:
    """A word of a label without case, width, emphasis and number; empty for a number."""
    word = _NUMBER.sub("", _AFTER_DASH.sub("", word.strip("*_")))
    word = word if word.isascii() else _CJK_NUMBER.sub("", word)
    folded = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    # Turkish has two letters i, with and without a dot, which the other languages' rules of case mix up.
    return folded.replace("i\u0307", "i").replace("ı", "i").strip("#.-–")


@functools.cache
def words() -> Words:
    """The words of `languages.toml`."""
    text = files("dialog_gen.protocols.parsing").joinpath("languages.toml").read_text(encoding="utf-8")
    languages = TypeAdapter(dict[str, Language]).validate_python(tomllib.loads(text)).values()
    nouns: dict[str, Kind] = {}
    leading = {normal(word) for language in languages for word in language.qualifiers}
    letters: dict[str, Kind] = {"q": "Q", "p": "Q", "a": "A", "r": "A"}
    needed: dict[str, str] = {}
    pairs: set[tuple[str, str]] = set()
    for language in languages:
        labels: list[tuple[Kind, tuple[str, ...]]] = [
            ("Q", language.question), ("A", language.answer), ("E", language.explanation), ("O", language.options),
            ("D", language.details),
        ]  # fmt: skip
        for kind, phrases in labels:
            for phrase in phrases:
                *before, noun = map(normal, phrase.replace("+", " ").split())
                if "+" in phrase:
                    needed[noun] = before[-1]
                nouns.setdefault(noun, kind)
                leading.update(before)
        for pair in language.letters:
            question, answer = map(normal, pair.split())
            pairs.add((question, answer))
    headings = _any_of((f"{h}:" for language in languages for h in language.headings), r"(?: ?[:：]|$)")
    titles = [f"{g}:" for language in languages for g in language.groups]
    groups = _any_of(titles, r" ?#?\d{1,2} ?[:：.]")
    # Alone on its line it is an answer, "Which round?\nRound 2", unless an item follows.
    bare = _any_of(titles, rf" ?#?\d{{1,2}}$(?=\n[^\n]{{0,60}}[:：]|\n[^\n]{{1,300}}[{ASKING}]$)")
    speakers: dict[str, Kind] = {}
    for language in languages:
        for name in language.users:
            speakers[name] = "Q"
        for name in language.assistants:
            speakers[name] = "A"
    inquiries = [_inquiry(language) for language in languages]
    inner = {normal(word) for language in languages for word in language.links}
    return Words(
        nouns=nouns,
        leading=frozenset(leading),
        inner=frozenset(inner),
        ends=frozenset(
            {
                *nouns,
                *leading,
                *inner,
                *letters,
                *(letter for pair in pairs for letter in pair),
                "",
                *"ivx",
                "ii",
                "iii",
            }
        ),
        letters=letters,
        quoting=frozenset(normal(word) for language in languages for word in language.quoting),
        joining=frozenset(normal(word) for language in languages for word in language.joining),
        needed=needed,
        about=re.compile(
            f" (?:{'|'.join(sorted({word for language in languages for word in language.about}))}) ", re.I
        ),
        pairs=frozenset(pairs),
        heading=re.compile(
            rf"(?:^(?:#{{1,4}} )?|(?<=[.{ASKING}] ))(?:" + groups.pattern + "|" + headings.pattern + ")"
            rf"|(?<![:：{ASKING}]\n)^(?:#{{1,4}} )?(?:" + bare.pattern + ")",
            re.I | re.M,
        ),
        closing=_any_of((c for language in languages for c in language.closings), r" ?(?:[:：,，،、]|[*_]{0,3}\n)"),
        ending=_ending(languages),
        farewell=_any_of((f for language in languages for f in language.farewells), ""),
        refusal=_refusal(languages),
        asking=frozenset(word.casefold() for language in languages for word in language.asking),
        inquiries={
            word: tuple(inquiry for inquiry in inquiries if word in inquiry.first | inquiry.anywhere)
            for word in frozenset().union(*(inquiry.first | inquiry.anywhere for inquiry in inquiries))
        },
        unspaced=tuple(inquiry for inquiry in inquiries if inquiry.parts or inquiry.rhetorical_parts),
        speakers=speakers,
    )


def _inquiry(language: Language) -> Inquiry:
    asking, anywhere, pointing, rhetorical = (
        tuple(unicodedata.normalize("NFC", word.casefold()) for word in words)
        for words in (language.asking, language.inquiring, language.pointing, language.rhetorical)
    )
    return Inquiry(
        first=frozenset(asking),
        anywhere=frozenset(anywhere),
        pointing=frozenset(pointing),
        rhetorical=frozenset(rhetorical),
        rhetorical_endings=tuple(word[1:] for word in rhetorical if word.startswith("-")),
        parts=tuple(filter(_UNSPACED.match, anywhere)),
        rhetorical_parts=tuple(filter(_UNSPACED.match, rhetorical)),
    )


def _refusal(languages: Iterable[Language]) -> re.Pattern[str]:
    """An expression for a refusal, alone or after an apology, that ends its clause."""
    said: list[str] = []
    for language in languages:
        images = "|".join(map(re.escape, language.images))
        said += [re.escape(refusal).replace(r"\*", f"(?:{images})") for refusal in language.refusals]
    apologies = _any_of((apology for language in languages for apology in language.apologies), "")
    return re.compile(
        rf"(?:(?:{apologies.pattern})[^\w\n]{{0,3}}(?:\w{{2,6}} )?)?(?:{'|'.join(said)})(?=[.,;:!。、，！]|\Z)", re.I
    )


def _ending(languages: Iterable[Language]) -> re.Pattern[str]:
    ends = _any_of((ending for language in languages for ending in language.endings), "")
    counted = _any_of((heading for language in languages for heading in language.headings), "")
    return re.compile(
        rf"\W{{0,5}}(?:{ends.pattern})\W{{0,5}}"
        rf"|\W{{0,5}}(?:\w{{2,9}}: ?)?\d{{1,2}} (?:{counted.pattern})\b[^\n?]{{0,40}}"
        r"|(?:#[^\W\d]\w{0,40} ?){2,20}|</?end>|[^\w\s.,!?…\-–—*_/|()\[\]\"'<>=+&#%$€£°。、！？]{1,20}",
        re.I,
    )


def _any_of(phrases: Iterable[str], colon: str) -> re.Pattern[str]:
    """An expression for any of the phrases; for one that ends with a colon, `colon` must match after it."""
    parts: list[str] = []
    for phrase in sorted(set(phrases), reverse=True):
        text = re.escape(phrase.removesuffix(":")).replace("'", "['’]")
        parts.append(text + (colon if phrase.endswith(":") else "" if phrase[-1] >= _CJK else r"(?!\w)"))
    return re.compile("|".join(parts), re.I | re.M)
