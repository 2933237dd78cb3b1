"""Checkpoint folders with a third tower.

It is the base model's own folder, which loads in open_clip as the base model, with two files more:

    FOLDER/third_tower.json          the base model's name and hash of weights; beta, its share in a text's vector
    FOLDER/third_tower.safetensors   the third tower, by the names that `TextTower` has for its parameters
"""

THIRD_TOWER = "third_tower"
"""The format's name in the registry."""
CONFIG_FILE = "third_tower.json"
WEIGHTS_FILE = "third_tower.safetensors"
