"""Model folders of MaMMUT, as Hugging Face lays them out.

FOLDER/config.json        MammutConfig
FOLDER/generation_config.json, chat_template.jinja
FOLDER/protocol.toml      the questions that a run asks by default; only for a model that was trained on dialogues
FOLDER/tokenizer.json ... where the tokenizer is one of Hugging Face's
FOLDER/model.safetensors  written last
"""

MODEL_TYPE = "mammut"
"""The `model_type` in config.json, and the format's name in the registry."""
CONFIG_FILE = "config.json"
PROTOCOL_FILE = "protocol.toml"
"""`dialog_gen.models` reads it."""
WEIGHTS_FILE = "model.safetensors"
