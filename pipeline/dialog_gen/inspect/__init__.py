"""Statistics of a dataset, computed in one pass and in bounded memory, and its HTML report.

statistics.py      the statistics of a dataset; stats_text.py formats them as text
by_question.py     what is answered to each type of question
sketches.py        counts over streams of any length
distributions.py   histograms and quantiles
sampling.py        uniform samples of rows, and rows by their place
view.py            the HTML report in a browser
page/              the HTML report
"""
