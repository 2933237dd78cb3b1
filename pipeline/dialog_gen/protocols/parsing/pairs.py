"""A question-answer pair, and why an answer has none."""

from dataclasses import dataclass

REASONS = (
    "empty", "no_questions", "placeholder", "missing_answers", "too_few_pairs", "repeated", "truncated", "echo",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class QAPair:
    """A question of the user and the answer of the assistant."""

    user: str
    assistant: str


class MalformedAnswer(Exception):  # noqa: N818 - an outcome that is counted and retried, not a fault
    """A raw answer without a usable dialogue; `reason` is one of `REASONS`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
