"""How sure a model was of each answer: the mean log-probability of the tokens that the answer was read from."""

import re
from collections.abc import Sequence

from dialog_gen.protocols.parsing import QAPair


def answer_logprobs(
    text: str, tokens: Sequence[tuple[str, float]], pairs: Sequence[QAPair], *, asked: bool
) -> list[float | None]:
    """For each pair in order the mean log-probability, at most 0, of the tokens that overlap with its answer.

    `text` is what the model wrote, `tokens` are its tokens, each decoded on its own, with their log-probabilities;
    `asked` says that the questions are the model's own words, too, and stand before their answers. None for an answer
    that parsing put together from words which do not stand in the text in this order, or where there are no tokens.
    """
    spans = _token_spans(text, [token for token, _ in tokens])
    found: list[float | None] = []
    at = 0
    for pair in pairs:
        # An answer such as "2" may stand in its question, too.
        question = _find(pair.user, text, at) if asked else None
        answer = _find(pair.assistant, text, question.end() if question else at)
        if answer is None:
            found.append(None)
            continue
        at = answer.end()
        own = [
            log_prob
            for (start, end), (_, log_prob) in zip(spans, tokens, strict=True)
            if max(start, answer.start()) < min(end, answer.end())
        ]
        found.append(sum(own) / len(own) if own else None)
    return found


def _find(words: str, text: str, at: int) -> re.Match[str] | None:
    # Parsing makes one space of any white space.
    return re.compile(r"\s+".join(map(re.escape, words.split()))).search(text, at)


def _token_spans(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where each token stands: a tokenizer decodes a token on its own with its white space or without.

    Empty for white space, and for what stands nowhere: bytes of a character, the end-of-text token.
    """
    spans: list[tuple[int, int]] = []
    at, lost = 0, False
    for token in tokens:
        word = token.strip()
        start = text.find(word, at)
        # Only behind a token that was not found may there be text in between.
        if not word or start < 0 or (text[at:start].strip() and not lost):
            lost = lost or bool(word)
            spans.append((at, at))
            continue
        at, lost = start + len(word), False
        spans.append((start, at))
    return spans
