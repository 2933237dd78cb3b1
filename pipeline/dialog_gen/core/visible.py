r"""Text from outside (names, captions, configuration values) made safe for a terminal.

A terminal obeys control characters: they can clear the screen, set the title, or hide what follows. Bidirectional
overrides show text in another order than it has. All of them are shown as escapes, such as \x1b, so that they can be
seen and do nothing.
"""

import re

# The joiners U+200C and U+200D, which change no order, stay: words and emoji are written with them.
_FORMATS = "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_SURROGATES = "\ud800-\udfff"
_IN_LINE = re.compile(f"[\x00-\x1f\x7f-\x9f{_FORMATS}{_SURROGATES}]")
_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_FORMATS}{_SURROGATES}]")


def visible(text: object) -> str:
    """The text as one line: control characters, line breaks among them, are shown as escapes.

    The result can be encoded as UTF-8, because a lone surrogate is shown as an escape too.
    """
    return _IN_LINE.sub(_escape, str(text))


def visible_lines(text: object) -> str:
    """The same for text of several lines: line feeds and tabs stay."""
    return _IN_LINES.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    # Not repr(), which leaves some of these characters as they are.
    code = ord(found[0])
    short = {0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
