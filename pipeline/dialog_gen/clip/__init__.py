"""Models to search with: CLIP and its relatives. `loader.load_clip` is the one way in.

    base.py       what a loaded model can do (`Clip`), what a format of checkpoints is (`ClipFormat`), the registries
    loader.py     load, check and save a model of any format
    text/         texts -> token ids -> vectors
    open_clip/ third_tower/ mammut/ close/
                  one format each: `__init__.py` registers it, `layout.py` names the files of its folders,
                  `checkpoint.py` loads and saves them

A format's `__init__.py` is light at import; torch and open_clip are imported where a model is loaded.
"""
