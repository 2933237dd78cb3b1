"""Engines: they answer a conversation about an image.

base.py                the interface of an engine and the registry, which other packages extend through entry points of
                       the group `dialog_gen.engines`
start.py               checks and starts an engine with its settings
vllm/, transformers/   one engine each: an `__init__` that registers it and is fast to import, and the engine itself
"""
