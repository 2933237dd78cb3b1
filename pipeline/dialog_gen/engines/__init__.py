"""Engines: a conversation and an image in, an answer out.

base.py          what an engine is; the registry, which other packages extend through the entry points of the group
`dialog_gen.engines`
start.py         an engine with its settings, checked and started
vllm/, transformers/   one engine each: a light `__init__` that registers it, and the engine beside it
"""
