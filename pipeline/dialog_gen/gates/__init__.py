"""Quality gates: scores of question-answer pairs, and marks where a score lies beyond its limits.

    settings.py     which gates, and their limits
    scorer.py       what a gate is; scorers.py makes one from its settings
    apply.py        the pass over a dataset: the column `gates`, exactly once
    report.py       gates.json and the table: what the gates found

Nothing is deleted: `dialog_gen.dataset.record.kept_pairs` leaves out what is marked, whoever reads may do so or not.
"""
