"""Makes rows of Markdown out of the rows of HTML tables."""

import re

_PART = re.compile(r"<(?P<end>/?)(?P<name>table|tr|td|th)(?: [^<>\n]{0,80})?>|(?P<tag><[^<>\n]{1,100}>)", re.I)


def rows_as_markdown(text: str) -> str:
    """The text with each row of a table as a line with bars; below a row of headings only, the rule of a header."""
    pieces: list[str] = []
    cells: list[list[str]] | None = None  # of the row in which `at` is; None outside a row
    headings, is_first = True, True
    at = 0

    def close(end: str = " |\n") -> None:
        nonlocal cells, is_first
        if cells:
            row = [" ".join("".join(cell).split()).replace("|", "\\|") for cell in cells]
            pieces.append(f"\n| {' | '.join(row)}{end}")
            if is_first and headings:
                pieces.append(f"|{'---|' * len(row)}\n")
            is_first = False
        cells = None

    for part in _PART.finditer(text):
        between, at = text[at : part.start()], part.end()
        if cells is None:
            pieces.append(between)
        elif cells:
            cells[-1].append(between)
        name = (part["name"] or "").lower()
        if not name:  # a tag of something else
            if cells is None:
                pieces.append(part["tag"])
            elif cells:
                cells[-1].append(" ")
        elif name == "table":
            close()
            is_first = True
            pieces.append("\n")
        elif name == "tr":
            close()
            cells, headings = (None if part["end"] else []), True
        elif not part["end"]:
            cells = [] if cells is None else cells
            cells.append([])
            headings = headings and name == "th"
    rest = text[at:]
    if cells and rest.strip():  # the cell has no end
        cells[-1].append(rest)
        close(end="")
        return "".join(pieces)
    close()
    return "".join(pieces) + rest
