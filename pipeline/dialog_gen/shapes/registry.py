"""What the embedded world adds to the registries: its generators, its CLIP and its images."""

from importlib.resources import files
from pathlib import Path

from dialog_gen.clip.base import CLIP_MODELS
from dialog_gen.models.registry import MODELS, ModelEntry

_CHECKPOINTS = Path(str(files("dialog_gen.shapes"))) / "checkpoints"

CLIP_MODELS.register("shapes-clip")(_CHECKPOINTS / "shapes-clip")

for _name, _protocol, _architecture in (
    ("shapes-blip2", "blip2-two-turn", "BLIP-2-OPT"),
    ("shapes-llava", "llava-3qa", "LLaVA-1.5"),
):
    MODELS.register(_name)(
        ModelEntry(
            source=_name,
            folder=_CHECKPOINTS / _name,
            protocol=_protocol,
            description=f"{_architecture}'s architecture at 2 M parameters for the embedded world; "
            "ships with the package",
            dtype="float32",
            max_model_len=512,
        )
    )
