"""open_clip's checkpoint folders.

A folder contains open_clip_config.json, open_clip_model.safetensors and, if the tokenizer is not CLIP's, its files.
open_clip loads it with

    open_clip.create_model_and_transforms("local-dir:FOLDER")
    open_clip.create_model_and_transforms(NAME, pretrained="FOLDER/open_clip_model.safetensors")

If the text tower is one of Hugging Face's, the folder also has its `config.json`, so that it need not come from the
Hub.
"""

OPEN_CLIP = "open_clip"
"""The format's name in the registry."""
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
