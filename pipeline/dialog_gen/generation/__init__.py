"""Generating dialogues about images.

run.py         `generate`, the whole run
plan.py        the settings of a run, checked before it starts
runner.py      the job: images stream through the engine into the dataset
dialogue.py    one dialogue about one image
logprobs.py    log-probabilities of answers
summary.py     run.json and its text
"""
