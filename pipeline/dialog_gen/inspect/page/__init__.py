"""The HTML report of `dialog-gen report`: a dataset on one self-contained page.

page.py          writes the page, from the template page.html, page.css, page.js and the content as one JSON block
content.py       the content, as JSON values
thumbnails.py    thumbnails that fit into the page's size limit
"""

from dialog_gen.inspect.page.page import ReportSummary, report

__all__ = ["ReportSummary", "report"]
