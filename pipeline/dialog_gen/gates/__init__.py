"""Quality gates: they score question-answer pairs and mark the pairs whose score violates a limit.

    base.py         the base classes of gates and limits, and the registry; each gate has its own file
    settings.py     which gates are applied, and with which settings
    in_run.py       the gates that a run applies while it makes the dialogues
    apply.py        the pass over a dataset, which writes scores and marks exactly once
    summary.py      the counts of scores and marks, as gates.json and as a table

Nothing is deleted. `dialog_gen.dataset.record.kept_pairs` returns the pairs of a row that no gate marked.
"""
