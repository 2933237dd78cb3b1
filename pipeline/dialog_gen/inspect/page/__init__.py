"""`dialog-gen report`: a dataset as one self-contained HTML page.

page.py          writes the page: the template page.html with page.css, page.js and the content as one JSON block
content.py       the content, as JSON values
thumbnails.py    images small enough for the page's size limit
"""

from dialog_gen.inspect.page.page import ReportSummary, report

__all__ = ["ReportSummary", "report"]
