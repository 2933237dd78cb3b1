"""Cleans what a model wrote: its own turn without thinking, mark-up and closing words, with whitespace collapsed."""
# ruff: noqa: RUF001 - full-width punctuation

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from dialog_gen.protocols.parsing.html_table import rows_as_markdown
from dialog_gen.protocols.parsing.languages import ASKING, GREEK_MARK, Kind, normal, words
from dialog_gen.protocols.parsing.marks import counts_by_letters
from dialog_gen.protocols.parsing.speakers import turns_as_pairs
from dialog_gen.protocols.parsing.thinking import outside_thinking

# Quantifiers are bounded, and whitespace is collapsed before the search: the time is linear in the length of the text.
_JUNK = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\ufeff\ud800-\udfff]")
_DIRECTIONS = re.compile("[\u061c\u200e\u200f]")
_BOLD = re.compile(r"(?<![\w*])\*{2,3}(?=[^\s*])|(?<=[^\s*])\*{2,3}(?![\w*])")
_SPECIAL = (
    r"</?s>|<(?:pad|unk|bos|eos|image|end_of_(?:turn|image|utterance)|start_of_(?:turn|image)|image_soft_token|IMG_CONTEXT)>"
    r"|\[/?INST\]|\[IMG(?:_BREAK|_END)?\]|<\|\w{1,20}\|>"
)
_HEADER = r"<(?:\|im_start\||\|start\||\|start_header_id\||start_of_turn)>(?:assistant|model)\b"
"""What begins the model's turn in a chat template."""
_END = (
    r"(?:</s>|<(?:eos|pad|end_of_(?:turn|utterance))>"
    r"|<[|｜](?:(?:im_)?end|eo[stm](?:_id)?|end_?of_?text|end▁of▁sentence|return|pad)[|｜]>)"
)
"""Ends a turn in a chat template."""
_ENDED = re.compile(_END, re.I)
_PASSED = re.compile(
    rf"[ \n]?(?:{_END}[ \n]?)+(?:(?:<s>|<bos>)[ \n]?)?"
    rf"(?:(?:{_HEADER}|<\|assistant\|>)(?:<\|(?:end_header_id|message)\|>)?)?[ \n]?",
    re.I,
)
"""Between two turns of the model."""
_GOES_ON = re.compile(r"[{|]|\[[{\[\"]|[QA] ?\d{0,2}[.)]")
"""How the next part of a list may begin, besides labels and numbers."""
_GROUNDING = re.compile(
    r"<(?P<tag>box|quad|point)>[^<>\n]{0,200}</(?P=tag)>|</?ref>|<(?:loc|seg)\d{3,4}>"
    r"|<\|(?P<name>box|quad)_start\|>[^<>\n]{0,200}<\|(?P=name)_end\|>|<\|object_ref_(?:start|end)\|>"
)
"""Places in the image, as models that were trained to point write them beside words."""
_LATEX = re.compile(r"\\(?:textbf|textit|emph|text|boxed)\{([^{}\n]{0,200})\}")
_LATEX_LINE = re.compile(r"^[ \t]{0,9}\\(?:(?P<item>item)|(?:begin|end)\{\w{1,20}\})[ \t]{0,9}", re.M)
_BRACKETED = re.compile(
    r"(?:^([^\w\n\[]{0,4}(?:\d{1,2}[.)] )?)|(?<=[.?!。？！] ))\[([^\[\]\n]{1,30})\][:：]? ?(?=\S)", re.M
)
_ENCLOSED = re.compile(rf"(?<=[{ASKING}]) ?[*_]?[(\[]([^\W\d_]{{1,14}}): ?([^()\[\]\n]+)[)\]][*_]?[ .]?$", re.M)
_ASIDE = re.compile(r"(?<=\S)[ \n]\(([^\W\d_]{3,14}): ?([^()\n]{1,300})\)[ .]?$", re.M)
_DOTTED = re.compile(r"(?:^|(?<=[ *]))([QA])\. ?(\d{1,2})[.):]?(?= )", re.M)
_NAME = r"[^\W\d_]{1,12}(?: ?\d{1,2})?"
_UNUSUAL = re.compile(
    r"(?:^(?P<before>[^\w\n(]{0,4}(?:\d{1,2}[.)] ?)?)|(?<=[.?!。？！] ))"
    rf"(?:\((?P<round>{_NAME})\)|(?P<letter>[QA]\d{{0,2}}) [–—-]|(?P<counted>[QA]\d{{1,2}})(?= [^\s–—-])"
    rf"|(?P<name>{_NAME})(?: =| ?>))[:：]? ?(?=\S)",
    re.M,
)
_TICKED = re.compile(
    r"(^[^\w\n`]{0,4}(?:\d{1,2}[.)] ?)?|(?<=[.?!。？！] ))`([^`\n:：]{1,20})(?:([:：])`|`(?=[:：]))", re.M
)
_GLUED = re.compile(rf"(?<=[{ASKING}])(?=({_NAME})[:：])")
"""Between a question and the label of its answer: "Q:What is it?A:a dog"."""
_PICTOGRAPH = re.compile(
    "^(?:[\u2600-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff][\ufe0f\u200d]{0,2} ?){1,3}(?=([^\\W_][^\\n]{0,80}))", re.M
)
_EMPHASIZED = re.compile(r"^([*_])(?=\S)([^*_\n]+)(?<=\S)\1$", re.M)
"""A line that is emphasized as a whole."""
_ASSIGNED = re.compile(r"^ ?([^\W\d]\w{0,20}) = (?=[\"'])", re.M)
_SECTION = re.compile(r"^ ?\[\[\w{1,20}\]\]$", re.M)
_BLOCK = re.compile(r"(?<=[:：]) [|>][+-]?$", re.M)
"""The sign of YAML for a text that begins on the next line."""
_COUNTED_ENTRY = re.compile(r"^ ?-(?: [^\W\d]\w{0,12}: ?\W?\w?\d{1,3}\W?)?\n(?= ?[^\W\d]\w{0,20}: )", re.M)
"""The line of an entry of YAML above its first key, which may have its number."""
_OPTION = re.compile(
    r"^(?P<before>[^\w\n]{0,6})(?P<noun>[^\W\d_]{3,14}) (?P<key>[A-H])[*_]{0,3} ?[:：.)] ?(?=\S)", re.M
)
_ASKING_KEY = re.compile(
    rf"^([^\w\n\"'“]{{0,6}}(?:\d{{1,2}}[.)] )?)[\"'“]?([^\n:：{ASKING}]{{2,300}}[{ASKING}])"
    r"[\"'”*_]{0,4} ?[:：] ?(?=\S)",
    re.M,
)
"""A question as the key of its answer."""
_GREEK_QUESTION = re.compile(r"(?<=[\u0370-\u03ff\u1f00-\u1fff]);(?=[\s\"'»”)*_<]|$)")
_GAP = re.compile(r"\n[^\S\n]*\n\s*")
_MARKED = re.compile(r"[^\w\n]{0,8}(?:\d{1,2} ?[.):、．]|(?P<label>[^\W\d][^\n:：]{0,60}?)[*_]{0,3} ?[:：])")
_AFTERWORDS = 3
_MOST_CUT = 3
"""Lines at the end that are dropped, of each kind."""
_LONGEST_ENDING = 120
_FEW_WORDS = 3
_REPEATED = 2
"""Details in parentheses, below which one is part of an answer."""
_TAG = re.compile(r"<(?P<end>/?)(?P<name>[a-zA-Z][\w-]{0,20})(?: [^<>\n]{0,80})?/?>")
_BREAKS = frozenset(
    ["br", "p", "li", "ol", "ul", "dl", "dt", "dd", "div", "tbody", "thead", "h1", "h2", "h3", "h4", "h5", "h6", "hr"]
)
_ROLE = re.compile(r" ?(?:user|assistant|human|system|instruction|response|input)\b", re.I)
_STYLES = frozenset(["b", "i", "u", "strong", "em", "span", "code", "mark", "small"])
_STYLED = re.compile(r"^[^\w\n<]{0,4}(?:\d{1,2}[.)] )?<(?:b|strong|em|i|u)>", re.M | re.I)
_CIRCLED = re.compile("([①-⑳])|([0-9])\ufe0f?\u20e3")
_QUOTED = re.compile(r"^ ?(?:> ?){1,4}", re.M)
_RULE = re.compile(r"^(?:[-*_=]{3,80}|#{1,6} ?\d{1,2}[.):]?|={2,6} ?\d{1,2} ?={2,6}|-{2,6} ?\d{1,2} ?-{2,6})$", re.M)
"""A line between two items, or the number of one as a heading."""
_FENCE = re.compile(r"^(?:`{3,}|~{3,}).{0,20}$", re.M)
_SENTENCE = re.compile(rf"(?<=[.!。！।۔…){ASKING}] )|(?<=[。！？\n])")
_BULLETS = " *_#>-–•([¡"
_NO_WORD = re.compile(r"\W+")
_ASKS = re.compile(f"[{ASKING}]")
_ITEM = re.compile(r"^[^\w\n]{0,4}\d{1,2} ?[.):、．]", re.M)
_NUMBER = re.compile(r"(?:^|(?<=[\s*_(]))(\d{1,2})[.):、．]", re.M)
_BARE_ITEM = re.compile(
    rf"(?:\n|(?<=[.!。！।۔{ASKING}] ))[^\w\n]{{0,4}}(\d{{1,2}})[^\w\n]{{1,4}}(\w{{0,12}})[^\w\n]{{0,4}}\Z"
)


@dataclass(frozen=True, slots=True)
class _Special:
    """Patterns of special tokens, which depend on the model's tokenizer."""

    token: re.Pattern[str]
    opening: re.Pattern[str]
    """What may come before the model's turn."""
    stop: re.Pattern[str]
    """What ends the model's turn."""


@lru_cache(maxsize=16)
def _special(texts: tuple[str, ...]) -> _Special:
    # The longest first: "<image>" may be the beginning of another token. By first characters, of which there are few:
    # some tokenizers have a thousand special tokens, and each alternative is tried at each position.
    rests: dict[str, list[str]] = {}
    for text in sorted(texts, key=len, reverse=True):
        rests.setdefault(text[0], []).append(re.escape(text[1:]))
    own = [f"{re.escape(first)}(?:{'|'.join(rest)})" for first, rest in rests.items()]
    token = "|".join([*own, _SPECIAL])
    return _Special(
        token=re.compile(token),
        opening=re.compile(rf"\A(?:\s|{_HEADER}|{token}|ASSISTANT:|Assistant:)+"),
        stop=re.compile(
            rf"{token}|(?:^|(?<=\s))(?:USER|ASSISTANT|HUMAN|SYSTEM) ?:|^(?:User|Assistant|Human) ?:"
            r"|###(?! ?(?i:question|answer|[qa]?\d|[qa] ?[:.)]))",
            re.M,
        ),
    )


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned text, and how it ended."""

    text: str
    stopped: bool
    """Whether another turn followed, or closing words."""
    thinking: bool
    """Whether the text ends within the model's thinking."""


def clean(text: str, special: tuple[str, ...] = (), *, turns: bool = False) -> Cleaned:
    """The model's own turn with whitespace collapsed, without thinking, mark-up, headings and closing words.

    `special` are the special tokens of the model's tokenizer; those of widely used models are always special.
    With `turns`, the turns of a transcript, "User: X? Assistant: Y", are the model's own, and not those of others.
    """
    patterns = _special(special)
    text, thinking = outside_thinking(text)
    text = _JUNK.sub(" ", _DIRECTIONS.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
    text = with_question_marks(text)
    text = _without_tags(_GROUNDING.sub("", text))
    # First, since the other patterns look for the beginning of a line.
    text = patterns.opening.sub("", text, count=1)
    body = _without_afterwords(text)
    afterwords = len(body) < len(text)
    body = _ENDED.sub(r"\g<0>\n", body) if turns and "<" in body else body
    text = _relabelled(_collapsed(_CIRCLED.sub(_plain_number, body)))
    text = _joined(turns_as_pairs(text)) if turns else text
    stop = next((m.start() for m in patterns.stop.finditer(text) if not _is_title(text, m, turns)), None)
    # Only now, without the asterisks, has "<**image>" become a special token.
    text = _RULE.sub("", text[:stop])
    if len(_QUOTED.findall(text)) > 1:
        text = _QUOTED.sub("", text)
    text = _EMPHASIZED.sub(r"\2", _BOLD.sub("", text))
    text = _PICTOGRAPH.sub(lambda found: "" if _label_of(found[1]) else found[0], text)
    text = without_special_tokens(_without_headings(text), special)
    text = _collapsed(text).strip()
    end = _closing_start(text, listed=turns)
    body = _FENCE.sub("", text[:end])
    return Cleaned(_collapsed(body).strip(), stop is not None or afterwords or end < len(text), thinking)


def without_special_tokens(text: str, special: tuple[str, ...] = ()) -> str:
    """The text without words that a tokenizer would read as special tokens, such as a second `<image>` or `</s>`.

    `special` are those of the model's tokenizer. A space takes the place of each, since the rest could form another
    one: `<<image>image>`.
    """
    return _special(special).token.sub(" ", text)


def clean_field(text: str) -> str:
    """A text that was quoted within the model's, on one line, without mark-up and special tokens."""
    text = _JUNK.sub(" ", _DIRECTIONS.sub("", _without_tags(text)))
    return " ".join(without_special_tokens(_BOLD.sub("", text)).split())


def with_question_marks(text: str) -> str:
    """The text with Greek's own question mark in the place of a semicolon, which ends no other sentence of Greek."""
    return _GREEK_QUESTION.sub(GREEK_MARK, text) if ";" in text else text


def plain(text: str) -> str:
    """The letters and numbers of a text, for comparisons; the text itself if it has none."""
    if text.isascii():
        return " ".join(_NO_WORD.sub(" ", text.casefold()).split()) or text
    # Vowel signs of Indic scripts are no word characters of regular expressions.
    chars = (c if c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" else " " for c in text.casefold())
    return " ".join("".join(chars).split()) or text


def _without_tags(text: str) -> str:
    """HTML's line breaks become line breaks; `<question>X?</question>` becomes a line with a label."""
    if "<" not in text:
        return text
    if "</t" in text:
        text = rows_as_markdown(text)
    closed = {m["name"].lower() for m in _TAG.finditer(text) if m["end"]}
    asks = any(words().kind(name) == "Q" for name in closed)
    styled = not _BREAKS.isdisjoint(m["name"].lower() for m in _TAG.finditer(text)) or len(_STYLED.findall(text)) > 1

    def replaced(tag: re.Match[str]) -> str:
        name = tag["name"].lower()
        if name in _BREAKS:
            return "\n"
        if name in _STYLES:
            return "" if styled else tag[0]
        kind = words().kind(name) if name in closed else None
        if kind not in ("Q", "A"):
            return "\n" if asks and name in closed else tag[0]
        if tag["end"] or not asks:  # without questions, <answer> is around the whole
            return "\n"
        return "\nQuestion: " if kind == "Q" else "\nAnswer: "

    return _TAG.sub(replaced, text)


def _relabelled(text: str) -> str:
    """Labels in other notations, such as "[Question]", "Q.1", "(Q)", "Q -", `question = "..."`, become "Question:"."""

    def labelled(found: re.Match[str]) -> str:
        *before, name = found.groups()
        return f"{''.join(before)}{name}: " if words().kind(name) in ("Q", "A") else found[0]

    if "[" in text:
        kinds = {words().kind(found[2]) for found in _BRACKETED.finditer(text)}
        inline = {"Q", "A"} <= kinds and "[B]" not in text  # "[A] a cat [B] a dog" are choices
        text = _BRACKETED.sub(
            lambda found: (
                f"{found[1] or ''}{found[2]}: "
                if (inline or found[1] is not None) and words().kind(found[2]) in ("Q", "A")
                else found[0]
            ),
            text,
        )
    if ")" in text or "]" in text:
        text = _ENCLOSED.sub(
            lambda found: f"\n{found[1]}: {found[2]}" if words().kind(found[1]) == "A" else found[0], text
        )
        asides = [words().kind(found[1]) for found in _ASIDE.finditer(text)]
        dropped = {"E"} if asides.count("D") < _REPEATED else {"E", "D"}
        text = _ASIDE.sub(
            lambda found: f"\n{found[1]}: {found[2]}" if words().kind(found[1]) in dropped else found[0], text
        )
    text = _GLUED.sub(lambda found: "\n" if words().kind(found[1]) == "A" else "", text)
    text = _COUNTED_ENTRY.sub("- ", _BLOCK.sub("", text))
    if "{" not in text and len(_ASKING_KEY.findall(text)) > 1:
        text = _ASKING_KEY.sub(r"\1\2\n", text)
    options = [option for option in _OPTION.finditer(text) if _kind_of_option(option) in ("O", "A")]
    if {"A", "B"} <= {option["key"] for option in options} and not counts_by_letters(text):
        text = _OPTION.sub(lambda m: f"{m['before']}{m['key']}) " if _kind_of_option(m) in ("O", "A") else m[0], text)
    if "=" in text:
        assigned = _ASSIGNED.sub(labelled, text)
        text = _collapsed(_SECTION.sub("", assigned)) if assigned != text else text
    if "\\" in text:
        text = _LATEX.sub(r"\1", _LATEX_LINE.sub(lambda line: "- " if line["item"] else "", text))
    if "`" in text:
        text = _TICKED.sub(
            lambda found: (
                "".join(part or "" for part in found.groups()) if words().kind(found[2]) in ("Q", "A") else found[0]
            ),
            text,
        )
    kinds = {words().kind(_named(found)) for found in _UNUSUAL.finditer(text)}
    if {"Q", "A"} <= kinds:
        text = _UNUSUAL.sub(
            lambda found: (
                f"{(found['before'] or '').rstrip('<')}{_named(found)}: "
                if words().kind(_named(found)) in ("Q", "A")
                else found[0]
            ),
            text,
        )
    if {"Q", "A"} <= {m[1] for m in _DOTTED.finditer(text)}:
        text = _DOTTED.sub(r"\1\2:", text)
    return text


def _kind_of_option(option: re.Match[str]) -> Kind | None:
    noun = option["noun"]
    return words().kind(noun) or words().kind(f"{noun}s")


def _named(label: re.Match[str]) -> str:
    return label["round"] or label["letter"] or label["counted"] or label["name"]


def _without_afterwords(text: str) -> str:
    """The text without paragraphs that follow a list in which every line has a label or a number."""
    for gap in list(_GAP.finditer(text.rstrip()))[-_AFTERWORDS:]:
        body, tail = text[: gap.start()], text[gap.end() :]
        lines = [line for line in body.split("\n") if line.strip() and not _RULE.fullmatch(line.strip())]
        labels = [_label_of(line) for line in lines]
        labels = labels[next((at for at, label in enumerate(labels) if label), 0) :]
        if labels.count("Q") < 2 or not all(labels) or lines[-1].rstrip(" *_").endswith((":", "：")):
            continue
        is_prose = tail[:1].isalpha() and len(tail.split()) > _FEW_WORDS and not _ASKS.search(tail)
        if is_prose and not any(map(_label_of, tail.split("\n"))):
            return body
    return text


def _joined(text: str) -> str:
    """The text without the tokens that end a turn between the questions and answers of one list."""

    def joined(ends: re.Match[str]) -> str:
        line = text[ends.end() : ends.end() + _LONGEST_ENDING].partition("\n")[0]
        goes_on = _GOES_ON.match(line) or _label_of(line) in ("Q", "A", "N") or words().kind(line) in ("Q", "A")
        return "\n" if goes_on else ends[0]

    return _PASSED.sub(joined, text) if "<" in text else text


def _label_of(line: str) -> str | None:
    """What a line begins with: the kind of its label, "N" for a number, None for neither."""
    mark = _MARKED.match(line)
    if mark is None:
        return None
    if mark["label"]:
        return words().kind(mark["label"])
    inner = _MARKED.match(line, mark.end())
    return (words().kind(inner["label"]) if inner and inner["label"] else None) or "N"


def _without_headings(text: str) -> str:
    rest = words().heading.sub("", text)
    return rest if rest.strip() or text.rstrip().endswith((":", "：")) else text


def _plain_number(number: re.Match[str]) -> str:
    return f"{int(unicodedata.numeric(number[1] or number[2]))}. "


def _collapsed(text: str) -> str:
    text = re.sub(r"[^\S\n]+", " ", text)
    return re.sub(r" ?\n[ \n]*", "\n", text)


def _is_title(text: str, stop: re.Match[str], asks: bool) -> bool:
    """Whether "###" begins a title of this turn, such as a label, and not another turn.

    `asks` says that the turn asks questions, and such a title may be one.
    """
    if stop[0] != "###":
        return False
    line, _, below = text[stop.end() : stop.end() + 200].partition("\n")
    asks = asks and line.rstrip(" *").endswith(tuple(ASKING))
    if (stop.start() == 0 or asks) and below and not _ROLE.match(line):
        return True
    known = words()
    return any(normal(word.rstrip(":：")) in known.nouns for word in line[:60].split()[:4]) or bool(
        known.heading.match(text[stop.end() : stop.end() + 200].lstrip(" "))
    )


def _closing_start(text: str, *, listed: bool) -> int:
    """Where trailing words about the dialogue begin, such as "I hope this helps!", a code fence or a bare "4."."""
    end = _without_endings(text) if listed else len(text)
    for start, may_ask in reversed(_closings(text)):
        head, *rest = _SENTENCE.split(text[start:end], maxsplit=1)
        tail = "".join(rest)
        questions = len(_ASKS.findall(tail)) if may_ask else len(_ASKS.findall(head + tail))
        if questions > may_ask or _ITEM.search(tail) or _has_label(tail) or _is_opened(text, start):
            break
        end = start
    for _ in range(_MOST_CUT):
        end = len(text[:end].rstrip())
        item = _BARE_ITEM.search(text, max(0, end - 30), end)
        if not item or not _begins_label(item[2]) or _is_opened(text, item.start()):
            break
        numbers = [int(number) for number in _NUMBER.findall(text, 0, item.start())]
        if not numbers or int(item[1]) != numbers[-1] + 1:
            break
        end = item.start()
    return end


def _without_endings(text: str) -> int:
    """Where last lines begin that only end the dialogue, such as "Done." or hashtags."""
    end = len(text)
    for _ in range(_MOST_CUT):
        start = text.rfind("\n", 0, end) + 1
        if end - start > _LONGEST_ENDING or not words().ending.fullmatch(text, start, end) or _is_opened(text, start):
            break
        end = len(text[:start].rstrip())
    return end


def _closings(text: str) -> list[tuple[int, bool]]:
    """The starts of lines and sentences that may close a dialogue, in order; and whether they may be a question."""
    starts = {m.start(): False for m in _FENCE.finditer(text)}
    known = words()
    for m in _SENTENCE.finditer(text):
        start = at = m.end()
        while at < len(text) and text[at] in _BULLETS:
            at += 1
        if known.farewell.match(text, at):
            starts[start] = True
        elif text[start - 1] == "\n" and known.closing.match(text, at):
            starts[start] = False
    return sorted(starts.items())


def _begins_label(word: str) -> bool:
    return not word or words().kind(word) is not None or "question".startswith(word.casefold())


def _is_opened(text: str, start: int) -> bool:
    """Whether what begins here is the text of a label or the answer to a question, and therefore closes nothing."""
    before = text[:start].rstrip()
    return not before or before[-1] in f":：{ASKING}"


def _has_label(text: str) -> bool:
    return any(words().kind(part.rpartition("\n")[2]) for part in re.split(r"[:：]", text)[:-1])
