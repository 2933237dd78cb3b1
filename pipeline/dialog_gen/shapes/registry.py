"""Adds the generators, the CLIP model and the images of the embedded world to the registries."""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from dialog_gen.clip.base import CLIP_MODELS
from dialog_gen.core.errors import UsageError
from dialog_gen.download.manifests import DOWNLOADS, DownloadRequest, DownloadSource, DownloadSummary
from dialog_gen.models.registry import MODELS, ModelEntry
from dialog_gen.shapes import scenes
from dialog_gen.shapes.second import scenes as scenes_2

if TYPE_CHECKING:
    from PIL import Image

_CHECKPOINTS = Path(str(files("dialog_gen.shapes"))) / "checkpoints"

for _clip in ("shapes-clip", "shapes2-clip"):
    CLIP_MODELS.register(_clip)(_CHECKPOINTS / _clip)


def _is_drawn(image: "Image.Image") -> bool:
    from dialog_gen.shapes.recognise import is_drawn

    return is_drawn(image)


for _name, _protocol, _architecture in (
    ("shapes-blip2", "blip2-two-turn", "BLIP-2-OPT"),
    ("shapes-llava", "llava-3qa", "LLaVA-1.5"),
):
    MODELS.register(_name)(
        ModelEntry(
            source=_name,
            folder=_CHECKPOINTS / _name,
            protocol=_protocol,
            description=f"{_architecture}'s architecture at 2 M parameters; knows drawn shapes only; ships with the "
            "package",
            knows="drawn shapes",
            recognises=_is_drawn,
            dtype="float32",
            max_model_len=512,
        )
    )


@DOWNLOADS.register("embedded")
class EmbeddedSource(DownloadSource):
    """A version of the embedded world, drawn on demand and served over loopback."""

    draws_images: ClassVar[bool] = True

    world: Literal["shapes", "shapes-2"] = "shapes"
    """Which version."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the world: train, val and test; compositional, too, in `shapes-2`."""
        return get_args(scenes.Split if self.world == "shapes" else scenes_2.Split)

    def download(self, request: DownloadRequest) -> DownloadSummary:
        """Draws and downloads the split. The default limit is the number of images in the manifest."""
        from dialog_gen.shapes.fetch import download_shapes
        from dialog_gen.shapes.worlds import WORLDS

        name, split, out = request.manifest.name, request.split, request.out
        limit = request.limit or request.manifest.rows.get(split)
        if limit is None:
            raise UsageError(f"{name} does not say how many images its split {split!r} has: give a --limit.")
        world = WORLDS[self.world]
        return download_shapes(
            out, split=split, seed=request.seed, limit=limit, world=world, on_progress=request.on_progress
        )
