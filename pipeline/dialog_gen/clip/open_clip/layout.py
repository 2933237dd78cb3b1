"""open_clip's own checkpoint folders.

FOLDER/open_clip_config.json, FOLDER/open_clip_model.safetensors and, where the tokenizer is not CLIP's, its files. It
loads with

    open_clip.create_model_and_transforms("local-dir:FOLDER")
    open_clip.create_model_and_transforms(NAME, pretrained="FOLDER/open_clip_model.safetensors")

A text tower of Hugging Face's adds its `config.json`, which open_clip would get from the Hub; here none is needed.
"""

OPEN_CLIP = "open_clip"
"""The format's name in the registry."""
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
