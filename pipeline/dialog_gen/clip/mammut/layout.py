"""Model folders of MaMMUT, with Hugging Face's layout.

FOLDER/config.json        `MammutConfig`
FOLDER/generation_config.json, chat_template.jinja
FOLDER/protocol.toml      the questions that a run asks by default; only for a model that was trained on dialogues
FOLDER/tokenizer.json ... only if the tokenizer is one of Hugging Face's
FOLDER/model.safetensors  the weights; written last
"""

MODEL_TYPE = "mammut"
"""The `model_type` in config.json, and the format's name in the registry."""
CONFIG_FILE = "config.json"
PROTOCOL_FILE = "protocol.toml"
"""The default protocol of the model, which `dialog_gen.models` reads."""
WEIGHTS_FILE = "model.safetensors"
