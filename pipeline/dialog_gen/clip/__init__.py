"""CLIP models and related models for search. `loader.load_clip` loads all of them.

    base.py       the interfaces of a loaded model (`Clip`) and of a checkpoint format (`ClipFormat`), the registries
    loader.py     load, check and save a model of any format
    text/         texts -> token ids -> vectors
    open_clip/ third_tower/ mammut/ close/
                  one format each: `__init__.py` registers it, `layout.py` names the files of its folders,
                  `checkpoint.py` loads and saves them

A format's `__init__.py` is fast to import: torch and open_clip are imported only when a model is loaded.
"""
