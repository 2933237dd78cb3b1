"""What a dataset's statistics say, in words: one line, and what to look at."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dialog_gen.inspect.statistics import Stats

_LOSSES = 0.02
_MARKED = 0.1
_SAME_ANSWER = 0.25
_FEW_QUESTIONS = 0.02
_REPEATED = 0.01
_FALLBACKS = 0.05
_ENOUGH = 100
"""Pairs or images from which shares of them are worth a finding."""
_UNCHECKED = "nothing stands out, but no gate asked the model again whether its answers are true (self_consistency)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A property of a dataset that someone who wants to train on it should look at."""

    text: str
    about: str
    """What it is about: "texts", "gates" or "losses"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVerdict:
    """The verdict on a dataset: a line in words and the findings behind it."""

    line: str
    findings: list[Finding]


def verdict(stats: Stats) -> DatasetVerdict:
    """The verdict on the dataset with these statistics."""
    if not stats.accepted:
        read = (
            "no image was read"
            if not stats.images
            else (
                "the only image has no dialogue"
                if stats.images == 1
                else f"none of {stats.images:,} images has a dialogue"
            )
        )
        return DatasetVerdict(line=f"Nothing to train on: {read}.", findings=list(_losses(stats)))
    found = [finding for rule in _RULES for finding in rule(stats)]
    images = f"{_of(stats.accepted, stats.images, 'image')} {'has' if stats.accepted == 1 else 'have'} a dialogue"
    gates = f", the gates keep {_of(stats.pairs_kept, stats.pairs_gated, 'pair')}" if stats.pairs_gated else ""
    calm = "nothing stands out" if "self_consistency" in stats.gates else _UNCHECKED
    end = {0: calm, 1: "one thing to look at"}.get(len(found), f"{len(found)} things to look at")
    return DatasetVerdict(line=f"{images[0].upper()}{images[1:]}{gates}: {end}.", findings=found)


def _losses(stats: Stats) -> Iterator[Finding]:
    for status, count in (("rejected", stats.rejected), ("unreadable", stats.unreadable)):
        if count > _LOSSES * stats.images:
            reasons = stats.reasons.get(status, {})
            most = max(reasons.values(), default=0)
            names = [f"“{name.replace('_', ' ')}”" for name in sorted(reasons) if reasons[name] == most]
            cause = f", most often for {_joined(names)}" if names else ""
            yield Finding(text=f"{share(count, stats.images)} of the images were {status}{cause}.", about="losses")


def _gates(stats: Stats) -> Iterator[Finding]:
    if not stats.pairs_gated:
        yield Finding(text="No quality gate was applied: `dialog-gen gate` scores and marks pairs.", about="gates")
        return
    if stats.pairs_gated < stats.pairs:
        yield Finding(text=f"Gates scored only {share(stats.pairs_gated, stats.pairs)} of the pairs.", about="gates")
    marked = stats.pairs_gated - stats.pairs_kept
    if marked > _MARKED * stats.pairs_gated:
        most = max(stats.gates, key=lambda name: (stats.gates[name].marked, name))
        alone = share(stats.gates[most].marked, stats.pairs_gated)
        yield Finding(
            text=f"Gates mark {share(marked, stats.pairs_gated)} of the pairs; “{most.replace('_', ' ')}” marks the "
            f"most, {alone}.",
            about="gates",
        )


def _texts(stats: Stats) -> Iterator[Finding]:
    if stats.pairs < _ENOUGH:
        return
    answer, count = next(iter(stats.answers.top.items()), ("", 0))
    if count > _SAME_ANSWER * stats.pairs:
        yield Finding(text=f"{share(count, stats.pairs)} of the answers are “{_short(answer)}”.", about="texts")
    if stats.questions.distinct < _FEW_QUESTIONS * stats.pairs:
        yield Finding(
            text=f"The questions repeat: there are {stats.questions.distinct:,} different ones in {stats.pairs:,} "
            "pairs.",
            about="texts",
        )


def _repeated(stats: Stats) -> Iterator[Finding]:
    if stats.repeated_images > _REPEATED * max(_ENOUGH, stats.accepted):
        about = "" if stats.repeated_images_is_exact else "About "
        yield Finding(text=f"{about}{stats.repeated_images:,} images repeat an earlier one.", about="losses")


def _fallbacks(stats: Stats) -> Iterator[Finding]:
    count = sum(stats.fallbacks.values())
    if count > _FALLBACKS * stats.accepted:
        yield Finding(text=f"A fallback protocol made {share(count, stats.accepted)} of the dialogues.", about="run")


_RULES: tuple[Callable[[Stats], Iterator[Finding]], ...] = (_losses, _gates, _texts, _repeated, _fallbacks)


def _joined(names: Sequence[str]) -> str:
    """The names as "a", "a and b" or "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def share(part: int, whole: int) -> str:
    """A part as a percentage that is 0 or 100 only if it is exactly that: "<0.1 %", "84.1 %", "100 %"."""
    if not whole or part in (0, whole):
        return "100 %" if part else "0 %"
    percent = 100 * part / whole
    return "<0.1 %" if percent < 0.05 else ">99.9 %" if percent >= 99.95 else f"{percent:.1f} %"


def _of(part: int, whole: int, noun: str) -> str:
    """Such as "all 12 images", "84.1 % of 9,216 pairs"."""
    if part == whole:
        return f"the only {noun}" if whole == 1 else f"all {whole:,} {noun}s"
    return f"{share(part, whole)} of {whole:,} {noun}s"


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
