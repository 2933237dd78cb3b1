"""What the embedded world adds to the registries: its generators, its CLIP and its images."""

from pathlib import Path

from dialog_gen.clip.base import CLIP_MODELS

CLIP_MODELS.register("shapes-clip")(Path(__file__).parent / "checkpoints" / "shapes-clip")
