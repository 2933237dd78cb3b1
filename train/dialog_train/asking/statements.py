"""Turns a question and its answer into a statement, by rules for the common forms of English questions.

    What color is the star?            purple -> the star is purple                  (TAP-C, arXiv 2203.07190)
    Is there a red square?             no     -> there is no red square
    How many green objects are there?  2      -> there are 2 green objects
    Is the star small or large?        small  -> the star is small
    What is the man holding?           a bat  -> the man is holding a bat

A question has three parts: what it asks for, its auxiliary, and the rest. The rest begins with the subject, or it is
only the predicate: "what is | on the table". `negated` denies the same statement, and `conjunction` says two
at once (NegBench, arXiv 2501.09425).
"""

import re
from dataclasses import dataclass

from dialog_train.asking.questions import (
    AUXILIARIES,
    COPULAS,
    NUMBER_WORDS,
    YES_NO,
    answer_key,
    expanded,
    fits,
    is_sentence,
    tidy,
    word_set,
)

_DETERMINERS = word_set("the a an this that these those his her its their our your my any some all both each every no")
_PRONOUNS = word_set("it this that these those he she they there someone anyone everyone you we one")
_PREPOSITIONS = word_set(
    """in on at under above below behind beside near over inside outside with without from by to next between against
    for through across around along into onto off up down"""
)
# Words that begin a predicate if one of `_LINKS` follows: "Is the star | left of the cross?"
_LINKED = word_set("left right next close far adjacent ahead full made part similar equal different")
_LINKS = word_set("of to from")
_NOT_VERBS = word_set(
    "building ceiling king thing string ring wing painting clothing morning evening wedding spring duckling"
)
# Participles that are parts of names: "a busy parking area"
_OF_PLACES = word_set("parking running living dining swimming shopping washing waiting walking skating sleeping")
# Verbs that questions with do, does and did have, for the end of the subject: "Does the man | have a hat?"
_VERBS = word_set(
    """have has look appear seem wear like need want hold contain use eat drink play sit stand run walk ride go come
    be make do get see show say read feel think match fit belong live work sell drive fly face lead cross point touch
    carry know take include represent mean open close smile smell taste weigh cost"""
)
# Participles that do not end in -ing: "Was this photo | taken at night?", "What is the table | made of?"
_PARTICIPLES = word_set(
    """taken parked dressed shown seen made held used covered filled located played painted tied closed opened attached
    placed kept built cooked eaten worn written displayed lit stacked turned pointed called driven flown ridden crossed
    folded served sliced seated crowded decorated surrounded broken"""
)
# The beginning of a subject -> the same if some are meant, and if none are: "Is anyone outside?" -> "no one is outside"
_SOME = {
    "any": ("some", "no"),
    "some": ("some", "no"),
    "either": ("either", "neither"),
    "anyone": ("someone", "no one"),
    "someone": ("someone", "no one"),
    "anybody": ("somebody", "nobody"),
    "somebody": ("somebody", "nobody"),
    "anything": ("something", "nothing"),
    "something": ("something", "nothing"),
}
_ALL = word_set("all both each every everyone everybody everything")
_NOBODY = word_set("nobody nothing none neither no")
# Amounts, of which a "no" makes another: "there are not two dogs"
_AMOUNT = re.compile(
    r"(?:[0-9]+|the|only|just|exactly|at least|at most|more than|less than|fewer than|another|many|much|enough|several|"
    rf"multiple|both|all|{'|'.join(NUMBER_WORDS)}) "
)
_WERE = {"do": "is", "does": "is", "did": "was"}
_PLACES = word_set("here there outside inside outdoors indoors left right downtown home upstairs nowhere")
# "there is | no | red square": what there is, not how much of it, and not "there is no one"
_EXISTENCE = re.compile(
    rf"(there (?:is|are|was|were)) (no )?((?!(?:not|no|one|nobody|nothing|none|neither)\b|{_AMOUNT.pattern}).+)",
    re.IGNORECASE,
)
# What a thing has one of: "What texture does the star have?"
_ATTRIBUTE = re.compile(r"(?:what|which) (colou?r|texture|pattern|shape|size|material|length|height|width|age)$")
# "What color shirt is the man wearing?"
_COLORED = re.compile(r"(?:what|which) colou?r (\w.*)$")
# Things of which one can count many: their names get an article.
_THINGS = re.compile(r"(?:what|which) (?:shape|object|animal|vehicle|thing|instrument|device|utensil|tool)\b")


@dataclass(frozen=True, slots=True)
class _Parts:
    """A question: `asked`, the auxiliary, the subject and the predicate; each may be empty but the auxiliary."""

    asked: str
    auxiliary: str
    subject: str
    predicate: str


def statement(question: str, answer: str) -> str:
    """The sentence that says what the answer says; "question answer" if no rule makes one, or if it does not fit."""
    return _sentence(question, answer, denied=False) or f"{question} {answer}"


def negated(question: str, answer: str) -> str | None:
    """The sentence that denies what the answer says; None for forms without a rule."""
    return _sentence(question, answer, denied=True)


def conjunction(first: str, second: str, *, phrase: bool = False) -> str:
    """The sentence that says two statements: "there is a star but no circle", "the star is red and the sky is blue".

    `phrase`: leave out "there is", as captions do.
    """
    one, other = _EXISTENCE.fullmatch(tidy(first)), _EXISTENCE.fullmatch(tidy(second))
    if not one or not other or one[1].lower() != other[1].lower():
        return f"{tidy(first)} and {tidy(second)}"
    # What is there comes first.
    one, other = (other, one) if one[2] and not other[2] else (one, other)
    there = "" if phrase else one[1]
    if one[2]:
        return _joined(there, "neither", one[3], "nor", other[3])
    return _joined(there, one[3], "but no" if other[2] else "and", other[3])


def _sentence(question: str, answer: str, *, denied: bool) -> str | None:
    words, said = expanded(tidy(question)).split(), tidy(answer)
    if not said or "?" in tidy(question) or not fits(question, said):
        return None
    if is_sentence(said):
        return None if denied else said
    if not (parts := _parts(words)):
        return None
    # What denies "nothing is on the table" says what is there.
    key = answer_key(said)
    if denied and key not in YES_NO and key.split()[0] in _NOBODY and not parts.asked.startswith("how many"):
        return None
    if parts.asked:
        return _count(parts, said, denied) if parts.asked.startswith("how many ") else _content(parts, said, denied)
    if key in YES_NO:
        # "Is the cat black or white?" is not asked for a yes; "Is there a cat or a dog?" is.
        if "or" in words and parts.subject != "there":
            return None
        return _polar(parts, (key == "yes") != denied)
    return _choice(parts, key, denied)


def _polar(parts: _Parts, true: bool) -> str | None:
    """An answer yes or no: "there is no red square"."""
    auxiliary, predicate = parts.auxiliary, parts.predicate
    if parts.subject == "there":
        return _existence(auxiliary, predicate, true)
    if not (parts.subject and predicate):
        return None
    if predicate.startswith("not "):
        true, predicate = not true, predicate.removeprefix("not ")
    subject, true = _quantified(parts.subject, true)
    # "He must not stop" is no denial of "he must stop".
    if not true and (auxiliary == "must" or subject.split()[0].lower() in _NOBODY):
        return None
    if true and auxiliary == "do":
        auxiliary = ""
    if true and auxiliary == "does":
        verb, _, rest = predicate.partition(" ")
        auxiliary, predicate = "", _joined(_third_person(verb), rest)
    return _joined(subject, auxiliary, "" if true else "not", predicate)


def _existence(auxiliary: str, predicate: str, true: bool) -> str:
    """Whether there is something: "there is no red square"."""
    predicate = re.sub(r"^no one\b", "nobody", predicate)
    # "Is there no star?" Yes, there is none.
    if (first := predicate.split(" ")[0]) in _NOBODY:
        true = not true
        predicate = predicate.removeprefix(first).strip()
        predicate = _joined({"nobody": "someone", "nothing": "something"}.get(first, ""), predicate)
    predicate = predicate.removeprefix("any ")
    first, _, rest = predicate.partition(" ")
    if first in _SOME and first not in ("any", "some", "either"):
        return _joined("there", auxiliary, _SOME[first][not true], rest)
    if true:
        return _joined("there", auxiliary, predicate)
    denial = "not" if _AMOUNT.match(predicate) else "no"
    return _joined("there", auxiliary, denial, re.sub(r"^(?:a|an|some) ", "", predicate))


def _quantified(subject: str, true: bool) -> tuple[str, bool]:
    """A subject that says how many are meant, so that it need not be denied: "no one", "not all the lights"."""
    first, _, rest = subject.partition(" ")
    if first.lower() in _SOME:
        told = _SOME[first.lower()][not true]
        return _joined("none" if told == "no" and rest.startswith("of ") else told, rest), True
    if first.lower() in _ALL and not true:
        return f"not {subject}", True
    return subject, true


def _choice(parts: _Parts, answer: str, denied: bool) -> str | None:
    """One of the answers that the question names, as in "the star is small"."""
    if parts.auxiliary not in COPULAS or parts.subject == "there":
        return None
    told = _joined(parts.subject, parts.predicate)
    before, found, after = told.partition(" or ")
    if not found or not re.search(rf"\b{re.escape(answer)}\b", told.lower()):
        return None
    # The first alternative is as long as the second: "the cat | in the box or on the bed".
    said, own = before.split()[: -len(after.split())], parts.subject.split()
    # "the woman wearing | a hat or a cap": what stands between the subject and the alternatives is said, too.
    between = said[len(own) :] if said[: len(own)] == own else []
    subject = said[: len(said) - len(between)]
    if not subject or (not between and subject[-1] in _DETERMINERS - _PRONOUNS):
        return None
    return _joined(" ".join(subject), parts.auxiliary, "not" if denied else "", *between, answer)


def _count(parts: _Parts, answer: str, denied: bool) -> str | None:
    """How many, as in "there are 2 green objects"."""
    things, auxiliary = parts.asked.removeprefix("how many "), parts.auxiliary
    none = answer_key(answer) in ("0", "zero", "none")
    one = answer_key(answer) in ("1", "one")
    if things.startswith("of "):
        # "Not 2 of the dogs are eating" leaves open whether 1 is, and nobody says it.
        if (denied and not none) or parts.subject or not parts.predicate:
            return None
        be = {"are": "is", "were": "was"}.get(auxiliary, auxiliary) if one else auxiliary
        return _joined("some" if denied else "none" if none else answer, things, be, parts.predicate)
    amount = "no" if none else answer
    if none and denied:
        amount, denied = "", False
    counted = _joined(amount, _singular(things) if one else things)
    rest = parts.predicate
    if parts.subject and parts.subject != "there" and not (parts.subject in ("you", "we") and rest.startswith("see")):
        if parts.auxiliary not in ("do", "does", "did"):
            return _joined(parts.subject, auxiliary, "not" if denied else "", _with_object(rest, counted))
        return _polar(_Parts("", auxiliary, parts.subject, _with_object(rest, counted)), not denied) if rest else None
    if parts.subject != "there" and parts.subject:
        rest, auxiliary = rest.removeprefix("see").strip(), "are"
    if auxiliary not in COPULAS:
        return None
    be = {"are": "is", "were": "was"}.get(auxiliary, auxiliary) if one else auxiliary
    return _joined("there", be, "not" if denied else "", counted, rest)


def _content(parts: _Parts, answer: str, denied: bool) -> str | None:
    """What, which, who and where, as in "the star is purple"."""
    asked, auxiliary, subject, predicate = parts.asked, parts.auxiliary, parts.subject, parts.predicate
    if (attribute := _ATTRIBUTE.match(asked)) and predicate == "have" and auxiliary in _WERE:
        be = _WERE[auxiliary]
        return _joined("the", attribute[1], "of", subject, be, "not" if denied else "", answer)
    if asked.startswith(("why", "how", "when")) and (asked != "how" or auxiliary not in COPULAS or predicate):
        return None
    if _THINGS.match(asked):
        answer = _with_article(answer)
    if colored := _COLORED.match(asked):
        answer = _joined(answer, colored[1])
    if asked == "where":
        if not subject or auxiliary not in COPULAS:
            return None
        first = answer.split()[0].lower()
        told = first in _PREPOSITIONS | _PLACES or predicate.split(" ")[-1] in _PREPOSITIONS
        place = answer if told else _joined("in", _with_the(answer))
        return _joined(subject, auxiliary, "not" if denied else "", predicate, place)
    if not subject:
        if not predicate:
            return None
        return _joined(answer, auxiliary, "not" if denied else "", predicate)
    if auxiliary in ("do", "does", "did"):
        return (
            _polar(_Parts("", auxiliary, subject, _with_object(predicate, answer)), not denied) if predicate else None
        )
    if subject.endswith(" like") and not predicate:
        subject = subject.removesuffix(" like")
    # What somebody is doing, the answer says.
    doing, _, rest = predicate.partition(" ")
    predicate = _joined(answer, rest) if doing == "doing" else _with_object(predicate, answer)
    return _joined(subject, auxiliary, "not" if denied else "", predicate)


def _parts(words: list[str]) -> _Parts | None:
    lower = [word.lower() for word in words]
    at = next((place for place, word in enumerate(lower) if word in AUXILIARIES), None)
    if at is None or (at > 0 and lower[0] not in ("what", "which", "who", "where", "how", "why", "when")):
        return None
    rest = words[at + 1 :]
    asked, auxiliary = " ".join(lower[:at]), lower[at]
    end = _end_of_subject(rest, asked, auxiliary)
    return _Parts(asked, auxiliary, " ".join(rest[:end]), " ".join(rest[end:]))


def _end_of_subject(rest: list[str], asked: str, auxiliary: str) -> int:
    """The number of words of the subject at the beginning of `rest`; 0 if it begins with the predicate.

    There is no grammar here: the subject ends before what looks like a verb; in "Is the star on the left?" also before
    a preposition, and before the last word if there is no other sign.
    """
    lower, polar = [word.lower() for word in rest], not asked
    if not lower:
        return 0
    if lower[0] in _PRONOUNS and (lower[0] not in _DETERMINERS or len(lower) == 1 or _begins_predicate(lower[1])):
        return 1
    if lower[0] not in _DETERMINERS:
        if not polar and (auxiliary in COPULAS or not any(word in _VERBS for word in lower)):
            return 0
        if not polar and lower[0] in _VERBS:
            return 0
    # A determiner is no subject: "Is the sitting man | old?"
    least = 2 if lower[0] in _DETERMINERS else 1
    for place, word in enumerate(lower[1:], 1):
        if auxiliary in COPULAS:
            # "What color is the car on the left?": it belongs to the subject, as in "Is the color of the car red?"
            linked = word in _LINKED and bool(_LINKS & {*lower[place + 1 : place + 2]})
            begins = linked or (_begins_predicate(word) and lower[place - 1] != "of")
            verb = _is_participle(word) or (word in _PARTICIPLES and _is_predicate(lower[place + 1 :], asked))
            if place >= least and (verb or (polar and place > 1 and begins)):
                # "Is the man on the left | holding a bat?"
                return _doing(lower, place) if word in _PREPOSITIONS else place
        # Of two in a row, the first is a noun: "What does the stand | sell?"
        elif word in _VERBS and (not _VERBS & {*lower[place + 1 : place + 2]} or lower[place + 1] == "like"):
            return place
    if not polar:
        # "What side is the car | on?"
        return len(rest) - (lower[-1] in _PREPOSITIONS | {"of"} and len(rest) > 1) if auxiliary in COPULAS else 0
    if auxiliary not in COPULAS:
        return min(least, len(rest) - 1)
    # "Is the shirt | blue and white?", and "Are the boy and girl | happy?"
    joint = lower.index("and") if "and" in lower[2:-1] else 0
    return (joint - 1) if joint > least else len(rest) - 1


def _doing(lower: list[str], place: int) -> int:
    """The place of a participle behind a preposition and its noun, but not of "the sitting man"; else `place`."""
    ahead = _DETERMINERS | _PREPOSITIONS | word_set("of")
    for at in range(place + 2, len(lower)):
        named = lower[at] in _OF_PLACES and not ahead.issuperset(lower[at + 1 : at + 2])
        if _is_participle(lower[at]) and lower[at - 1] not in ahead and not (named and lower[at + 1 :]):
            return at
    return place


def _is_predicate(after: list[str], asked: str) -> bool:
    """Whether a participle with these words after it is the predicate: "taken at night", not "the painted wall"."""
    if asked in ("", "where", "how"):
        return not after or after[0] in _PREPOSITIONS or after[0].endswith("ly")
    return all(word in _PREPOSITIONS | {"of", "as"} for word in after)


def _begins_predicate(word: str) -> bool:
    return word in _PREPOSITIONS or word in _DETERMINERS or _is_participle(word) or word in _PARTICIPLES | {"not"}


def _is_participle(word: str) -> bool:
    return word.endswith("ing") and len(word) > 4 and word not in _NOT_VERBS


def _with_object(predicate: str, answer: str) -> str:
    """The answer after the verb, or behind the predicate: "wearing a hat on his head", "looking at a bird"."""
    verb, *rest = predicate.split() or [""]
    are = [word.lower() in _PREPOSITIONS for word in rest]
    if not rest or not are[0] or are[-1]:
        return _joined(predicate, answer)
    verb, rest = (_joined(verb, rest[0]), rest[1:]) if are[1] else (verb, rest)
    return _joined(verb, answer, *rest)


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _with_article(answer: str) -> str:
    first = answer.split()[0].lower()
    if first in _DETERMINERS or first[0].isdigit() or re.search(r"[^s]s$", first):
        return answer
    return f"{'an' if first[0] in 'aeiou' else 'a'} {answer}"


def _with_the(place: str) -> str:
    return place if place.split()[0].lower() in _DETERMINERS else f"the {place}"


def _third_person(verb: str) -> str:
    special = {"have": "has", "do": "does", "go": "goes"}
    if verb in special:
        return special[verb]
    if re.search(r"(?:s|sh|ch|x|z)$", verb):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}s"


_SINGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "feet": "foot",
    "teeth": "tooth",
    "mice": "mouse",
    "geese": "goose",
    "buses": "bus",
    "knives": "knife",
    "wives": "wife",
    "lives": "life",
    "leaves": "leaf",
    "loaves": "loaf",
    "shelves": "shelf",
    "wolves": "wolf",
    "calves": "calf",
    "halves": "half",
    "scarves": "scarf",
}
_IE = word_set("movies cookies ties pies zombies brownies hoodies selfies smoothies veggies doggies")
_OE = word_set("shoes toes canoes horseshoes snowshoes hoes")


def _singular(things: str) -> str:
    """The first noun of a plural in the singular: "green objects" -> "green object", "slices of pizza"."""
    first, of, rest = things.partition(" of ")
    *before, last = first.split()
    if last in _SINGULAR:
        last = _SINGULAR[last]
    elif last.endswith("ies") and last not in _IE:
        last = f"{last[:-3]}y"
    elif re.search(r"(?:sh|ch|x|ss|o)es$", last) and last not in _OE:
        last = last[:-2]
    elif last.endswith("s") and not last.endswith("ss"):
        last = last[:-1]
    return _joined(*before, last) + of + rest
