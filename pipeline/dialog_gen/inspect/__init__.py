"""A dataset's figures, in one pass and in memory that does not grow with it; uniform samples of its rows.

collect.py         the pass; table.py tells its result
sketches.py        counts over streams of any length; distributions.py: histograms and quantiles
sampling.py        rows drawn uniformly
"""
