"""Counts with their nouns: "1 image", "2 images"."""

_ENDS = ("s", "x", "ch", "sh")


def count_of(count: int, noun: str, *, grouped: bool = False) -> str:
    """The count with the noun, which is in the plural unless the count is one; only the last word of it is changed.

    With `grouped`, thousands are separated by commas.
    """
    number = f"{count:,}" if grouped else str(count)
    if count == 1:
        return f"{number} {noun}"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith(_ENDS) else 's'}"
