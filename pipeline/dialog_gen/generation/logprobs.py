"""A model's confidence in each answer: the mean log-probability of the tokens that the answer was parsed from."""

import math
import re
from collections.abc import Sequence

from dialog_gen.protocols.parsing import QAPair


def answer_logprobs(
    text: str, tokens: Sequence[tuple[str, float]], pairs: Sequence[QAPair], *, questions_in_text: bool
) -> list[float | None]:
    """For each pair, in order, the mean log-probability (at most 0) of the tokens that overlap with its answer.

    `text` is what the model wrote. `tokens` are its tokens, each decoded on its own, with their log-probabilities.
    `questions_in_text` says that the model also wrote the questions, each before its answer. The result is None for an
    answer that is not found in the text after the previous one, for one with a log-probability that is NaN, and for all
    answers if there are no tokens.
    """
    spans = _token_spans(text, [token for token, _ in tokens])
    found: list[float | None] = []
    at = 0
    for pair in pairs:
        # The search starts after the question: an answer such as "2" may also occur in its question.
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
        mean = sum(log_probs) / len(log_probs) if log_probs else math.nan
        # A gate would compare NaN, which a broken model gives, with its limits in vain.
        found.append(None if math.isnan(mean) else mean)
    return found


def _find(words: str, text: str, at: int) -> re.Match[str] | None:
    # Parsing replaced each run of white space with one space.
    return re.compile(r"\s+".join(map(re.escape, words.split()))).search(text, at)


def _token_spans(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """The (start, end) of each token in the text, without white space: decoding a single token may lose it.

    Empty for white space, and for tokens that are not in the text: parts of a character, the end-of-text token.
    """
    spans: list[tuple[int, int]] = []
    at, lost = 0, False
    for token in tokens:
        word = token.strip()
        start = text.find(word, at)
        # Text may be skipped only after a token that was not found.
        if not word or start < 0 or (text[at:start].strip() and not lost):
            lost = lost or bool(word)
            spans.append((at, at))
            continue
        at, lost = start + len(word), False
        spans.append((start, at))
    return spans
