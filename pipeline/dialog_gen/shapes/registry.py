"""Adds the generators, the CLIP model and the images of the embedded world to the registries."""

from importlib.resources import files
from pathlib import Path
from typing import ClassVar, cast, get_args

from dialog_gen.clip.base import CLIP_MODELS
from dialog_gen.core.errors import UsageError
from dialog_gen.download.manifests import DOWNLOADS, DownloadRequest, DownloadSource, DownloadSummary
from dialog_gen.models.registry import MODELS, ModelEntry
from dialog_gen.shapes.scenes import Split

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


@DOWNLOADS.register("embedded")
class EmbeddedSource(DownloadSource):
    """The world `shapes`, drawn on demand and served over loopback."""

    draws_images: ClassVar[bool] = True

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the world: train, val and test."""
        return get_args(Split)

    def download(self, request: DownloadRequest) -> DownloadSummary:
        """Draws and downloads the split. The default limit is the number of images in the manifest."""
        from dialog_gen.shapes.fetch import download_shapes

        name, split, out = request.manifest.name, cast("Split", request.split), request.out
        limit = request.limit or request.manifest.rows.get(split)
        if limit is None:
            raise UsageError(f"{name} does not say how many images its split {split!r} has: give a --limit.")
        return download_shapes(out, split=split, seed=request.seed, limit=limit, on_progress=request.on_progress)
