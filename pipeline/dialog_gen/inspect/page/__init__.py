"""The HTML report of `dialog-gen report`: a dataset, or two side by side, on one self-contained page.

page.py          writes the page, from the template page.html, page.css, script/ and the content as one JSON block
content.py       the content, as JSON values; telling.py: of rows; rejects.py, repeats.py: of examples
compare.py       two datasets on the same images
pictures.py      the pictures of a page, which fit into its size limit together; thumbnails.py: of images
"""

from dialog_gen.inspect.page.page import ReportSummary, report

__all__ = ["ReportSummary", "report"]
