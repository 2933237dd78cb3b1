"""Generating dialogues about images.

run.py         `generate`, the whole run
plan.py        the settings of a run, checked before it starts
part.py        a part of a run, made without talking to those who make the other parts
committer.py   the driver's side: shards to be made, and their commit
runner.py      the job: images stream through the engine into the dataset
dialogue.py    one dialogue about one image
logprobs.py    log-probabilities of answers
summary.py     run.json and its text
batch/         dialogues from the batch APIs of clouds
estimate.py    what a run will take, from workload.py (requests and tokens) and speed.py (images a second)
model_report.py  what a run would ask a model, and which engines can read it
tune.py        the fastest settings of an engine, by measuring (trial.py measures one)
"""
