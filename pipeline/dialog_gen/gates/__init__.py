"""Quality gates: scores of question-answer pairs, and marks where a score violates its limits.

    base.py         what a gate is, its limits, the registry; each gate is a file of its own
    settings.py     which gates are applied, and with which settings
    apply.py        the pass over a dataset: scores and marks, exactly once
    summary.py      gates.json and the table: what gates found

Nothing is deleted: a reader may leave out marked pairs by `dialog_gen.dataset.record.kept_pairs`.
"""
