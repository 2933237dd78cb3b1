"""Checkpoint folders with a third tower.

Such a folder is the base model's folder, which open_clip can load as the base model, with two more files:

    FOLDER/third_tower.json          the base model's name and hash of weights; beta, its share in the text vectors;
                                     question_beta, if it has another share in the vectors of questions
    FOLDER/third_tower.safetensors   the parameters of the third tower, with their names in `TextTower`
"""

THIRD_TOWER = "third_tower"
"""The format's name in the registry."""
CONFIG_FILE = "third_tower.json"
WEIGHTS_FILE = "third_tower.safetensors"
