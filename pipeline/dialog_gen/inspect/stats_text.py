"""Statistics as text, as `dialog-gen stats` prints them."""

from collections.abc import Iterator, Mapping
from functools import partial

from dialog_gen.core.plural import count_of
from dialog_gen.core.visible import visible
from dialog_gen.inspect.distributions import Spread
from dialog_gen.inspect.statistics import Stats, Utterances

_SHOWN = 10
_count = partial(count_of, grouped=True)


def stats_text(stats: Stats) -> str:
    """The statistics as lines of text. The first line has the totals."""
    first = f"{_count(stats.images, 'image')} in {_count(stats.shards, 'shard')}, {_size(stats.bytes)} of Parquet"
    return "\n".join([first, *_lines(stats)])


def _lines(stats: Stats) -> Iterator[str]:
    for status in ("accepted", "rejected", "unreadable"):
        reasons = ", ".join(f"{visible(reason)} {count:,}" for reason, count in stats.reasons.get(status, {}).items())
        yield _line(status, getattr(stats, status), stats.images, reasons)
    if stats.repeated_images:
        note = "equal to an earlier image" + ("" if stats.repeated_images_is_exact else " (estimate)")
        yield _line("repeated", stats.repeated_images, stats.accepted, note)
    if sizes := stats.image_sizes:
        formats = ", ".join(f"{visible(name)} {count:,}" for name, count in sizes.formats.items())
        yield (
            f"  image sizes     median {sizes.width:g} x {sizes.height:g} pixels, {_size(round(sizes.bytes))}; "
            f"{formats} of {sizes.sampled:,} sampled"
        )
    for name, counts in (("models", stats.models), ("protocols", stats.protocols), ("engines", stats.engines)):
        yield f"  {name:<15} {', '.join(f'{visible(value)} {count:,}' for value, count in counts.items()) or '-'}"
    if stats.fallbacks:
        yield _line(
            "by fallback", sum(stats.fallbacks.values()), stats.accepted, ", ".join(map(visible, stats.fallbacks))
        )
    if not stats.pairs:
        return
    spread = ", ".join(f"{pairs}: {_count(images, 'image')}" for pairs, images in stats.pairs_per_image.items())
    yield f"  {'pairs':<12} {stats.pairs:>12,}   {stats.pairs / stats.accepted:.2f} per image ({spread})"
    if stats.statements is not None:
        yield _line("statements", stats.statements, stats.pairs, "of the pairs have a sentence that says the same")
    if stats.pairs_gated:
        yield _line("kept", stats.pairs_kept, stats.pairs_gated, "of the pairs that gates scored")
    yield from _utterances("questions", "first words", stats.questions, stats.pairs)
    yield from _utterances("answers", "most frequent", stats.answers, stats.pairs)
    yield from _table("kinds of answers", stats.answer_types, stats.pairs)
    if stats.captions.count:
        yield f"\ncaptions: {stats.captions.count:,}, {_words(stats.captions)}"
    if stats.gates:
        yield f"\n{'gates':<18}{'scored':>12}{'marked':>12}{'':9}{'median score':>14}"
        for name, gate in stats.gates.items():
            share = f"{gate.marked / stats.pairs_gated:8.1%}" if stats.pairs_gated else ""
            yield f"  {visible(name):<16}{gate.scored:>12,}{gate.marked:>12,}{share:>9}{gate.scores.median:>14g}"


def _utterances(name: str, of: str, found: Utterances, pairs: int) -> Iterator[str]:
    about = "" if found.distinct_is_exact else "about "
    yield f"\n{name}: {about}{found.distinct:,} different, {_words(found.words)}"
    note = f" (counts up to {found.top_undercount:,} too low)" if found.top_undercount else ""
    yield from _table(f"{of}{note}", dict(list(found.top.items())[:_SHOWN]), pairs, indent="  ")


def _table(title: str, counts: Mapping[str, int], whole: int, indent: str = "") -> Iterator[str]:
    yield f"{indent}{title}" if indent else f"\n{title}"
    for name, count in counts.items():
        yield f"    {_short(name):<42} {count:>12,} {count / whole:7.1%}"


def _words(spread: Spread) -> str:
    return f"{spread.mean:.1f} words on average, median {spread.median:g}, 95 % up to {spread.p95:g}"


def _line(name: str, count: int, whole: int, note: str) -> str:
    share = f"{count / whole:7.1%}" if whole else ""
    return f"  {name:<12} {count:>12,} {share:>7}{note and f'   {note}'}"


def _short(text: str) -> str:
    text = visible(" ".join(text.split()))
    return text if len(text) <= 40 else f"{text[:39]}…"


def _size(count: int) -> str:
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
