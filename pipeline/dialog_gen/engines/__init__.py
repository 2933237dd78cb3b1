"""Engines: they answer a conversation about an image.

base.py                the interface of an engine and the registry, which other packages extend through entry points of
                       the group `dialog_gen.engines`
start.py               checks and starts an engine with its settings
limited.py             an engine that gets a limited number of requests at a time
watchdog.py            gives up an engine that hangs
processes.py           the child processes of an engine
vllm/, transformers/   one engine each: an `__init__` that registers it and is fast to import, and the engine itself
"""
