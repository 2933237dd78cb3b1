"""`dialog-gen report`: a dataset as one self-contained HTML page.

content.py       what the page tells, as JSON values
thumbnails.py    images small enough for the page's budget
page.py          the page: page.html, page.css and page.js with the content in one JSON block
"""

from dialog_gen.inspect.page.page import Report, check_out, write_report

__all__ = ["Report", "check_out", "write_report"]
