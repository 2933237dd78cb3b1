"""What the embedded world adds to the registries: its generators, its CLIP and its images."""

from typing import ClassVar, cast, get_args

from dialog_gen.core.errors import UsageError
from dialog_gen.download.manifests import DOWNLOADS, DownloadRequest, DownloadSource, DownloadSummary
from dialog_gen.shapes.scenes import Split


@DOWNLOADS.register("embedded")
class EmbeddedSource(DownloadSource):
    """The world `shapes`, drawn on demand and served over loopback."""

    draws_images: ClassVar[bool] = True

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of the world."""
        return get_args(Split)

    def download(self, request: DownloadRequest) -> DownloadSummary:
        """Draws and downloads the split; without a limit, as many images as the manifest says."""
        from dialog_gen.shapes.fetch import download_shapes

        name, split, out = request.manifest.name, cast("Split", request.split), request.out
        limit = request.limit or request.manifest.rows.get(split)
        if limit is None:
            raise UsageError(f"{name} does not say how many images its split {split!r} has: give a --limit.")
        return download_shapes(out, split=split, seed=request.seed, limit=limit, on_progress=request.on_progress)
