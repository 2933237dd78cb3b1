"""A model's confidence in each answer: the mean log-probability of the tokens that the answer was parsed from."""

import re
from collections.abc import Sequence

from dialog_gen.protocols.parsing import QAPair


def answer_logprobs(
    text: str, tokens: Sequence[tuple[str, float]], pairs: Sequence[QAPair], *, questions_in_text: bool
) -> list[float | None]:
    """For each pair in order the mean log-probability, at most 0, of the tokens that overlap with its answer.

    `text` is what the model wrote, `tokens` are its tokens, each decoded on its own, with their log-probabilities;
    `questions_in_text` says that the model wrote the questions, too, each before its answer. None for an answer whose
    words are not in the text in this order, or where there are no tokens.
    """
    spans = _token_spans(text, [token for token, _ in tokens])
    found: list[float | None] = []
    at = 0
    for pair in pairs:
        # An answer such as "2" may occur in its question, too.
        question = _find(pair.user, text, at) if questions_in_text else None
        answer = _find(pair.assistant, text, question.end() if question else at)
        if answer is None:
            found.append(None)
            continue
        at = answer.end()
        log_probs = [
            log_prob
            for (start, end), (_, log_prob) in zip(spans, tokens, strict=True)
            if max(start, answer.start()) < min(end, answer.end())
        ]
        found.append(sum(log_probs) / len(log_probs) if log_probs else None)
    return found


def _find(words: str, text: str, at: int) -> re.Match[str] | None:
    # Parsing makes one space of any white space.
    return re.compile(r"\s+".join(map(re.escape, words.split()))).search(text, at)


def _token_spans(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """The span of each token in the text; a token that is decoded on its own may lose its white space.

    Empty for white space, and for tokens that are not in the text: bytes of a character, the end-of-text token.
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
