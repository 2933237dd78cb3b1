"""Parts of an answer in which the model thinks, and channels, of which only the final one is the answer."""

import re

_THOUGHT = re.compile(
    r"<(?P<end>/?)(?:think|thinking|thoughts?|reasoning|reflection|analysis|scratchpad)(?: [^<>\n]{0,40})?>"
    r"|\[(?P<end2>/?)THINK\]|◁(?P<end3>/?)think▷"
    r"|<\|channel>(?:thoughts?|thinking|analysis)\b|(?P<end4><channel\|>)"
    r"|(?:<\|start\|>\w{1,20}[^\S\n]?)?<\|channel\|>\s?(?:(?P<end5>final)|[a-z]{1,20})\b[^<\n]{0,60}"
    r"(?:<\|constrain\|>[^<\n]{0,20})?(?:<\|message\|>)?",
    re.I,
)
"""A mark at which a thought begins or, with one of the groups, ends."""
_ENDS = ("end", "end2", "end3", "end4", "end5")
_CHANNEL_TOKENS = frozenset(["<|channel|>", "<|channel>", "<channel|>"])
"""Special tokens that are only a part of such a mark."""
_STRIPPED = ("analysis", "assistantfinal")
"""What is left of the marks of channels if an engine leaves out special tokens: "analysisHm.assistantfinala dog"."""


def without_thinking(text: str) -> str:
    """The text without the parts in which the model thinks, such as `<think>...</think>`."""
    return outside_thinking(text)[0]


def opens_thought(text: str) -> bool:
    """Whether a text ends within the model's thinking, as do the prompts of models that always think."""
    return outside_thinking(text)[1]


def marks_thought(text: str) -> bool:
    """Whether a special token is a mark at which thinking begins or ends, such as `<think>`, or a part of one."""
    return text in _CHANNEL_TOKENS or _THOUGHT.fullmatch(text) is not None


def outside_thinking(text: str) -> tuple[str, bool]:
    """The text without thinking, and whether it ends within the model's thinking."""
    analysis, final = _STRIPPED
    if text.startswith(analysis) and final in text:
        text = text.rpartition(final)[2]
    marks = [(m.start(), m.end(), not any(m[end] for end in _ENDS)) for m in _THOUGHT.finditer(text)]
    if not marks:
        return text, False
    kept, depth = _outside(text, marks, nested=True)
    if depth:  # a thought that mentions "<think>" ends at the last end all the same
        kept, depth = _outside(text, marks, nested=False)
    return "".join(kept), depth > 0


def _outside(text: str, marks: list[tuple[int, int, bool]], *, nested: bool) -> tuple[list[str], int]:
    kept: list[str] = []
    at = depth = 0
    for start, end, opens in marks:
        if opens:
            if not depth:
                kept.append(text[at:start])
            depth = depth + 1 if nested else 1
        elif depth > 1:
            depth -= 1
        else:
            if not depth:
                kept = []  # the prompt began the thought
            at, depth = end, 0
    return ([*kept, text[at:]] if not depth else kept), depth
