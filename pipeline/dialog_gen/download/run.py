"""Downloads the image set that a manifest describes."""

import os
from pathlib import Path

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import writing
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.download.folder import KEPT
from dialog_gen.download.http import FetchPolicy
from dialog_gen.download.manifests import DownloadOptions, DownloadRequest, DownloadSummary, Manifest, load_manifest
from dialog_gen.download.provenance import note_manifest


def download_images(
    manifest: str | Path | Manifest,
    out: str | Path,
    *,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    retry_failed: bool = False,
    url_column: str | None = None,
    caption_column: str | None = None,
    processes: int | None = None,
    threads: int = 64,
    timeout: float = 10,
    max_bytes: int = 32 << 20,
    allow_loopback: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> DownloadSummary:
    """Downloads a split of an image set into the folder `out`; a second call continues an interrupted download.

    `manifest` is the name of a shipped manifest, a TOML file, a list of URLs, or a loaded manifest. The columns of a
    list are `url_column` (default: url, or a usual name such as URL) and `caption_column` (default: caption, or a usual
    name such as TEXT; "" for none). `split` is by default the first split of the manifest. `limit` is the largest
    number of images. `seed` chooses the images of a source that draws them. `retry_failed` requests failed URLs once
    more when the download is complete.

    The other parameters limit requests: there are at most `threads` simultaneous requests in each of `processes`
    processes (default: one per CPU core); a request waits at most `timeout` seconds for the next bytes and takes at
    most three times that; an image has at most `max_bytes`. The origin of the images is written to `out`/manifest.json.

    Raises UsageError for an unknown manifest or split, for a seed or a retry that the source does not support, and if
    `out` contains something else; MissingExtraError if img2dataset is needed and not installed; FailedCheckError if
    something could not be fetched.
    """
    manifest = manifest if isinstance(manifest, Manifest) else load_manifest(str(manifest))
    if url_column is not None or caption_column is not None:
        changed = manifest.source.with_columns(url_column, caption_column)
        manifest = manifest.model_copy(update={"source": changed})
    out = Path(out)
    split = manifest.splits[0] if split is None else split
    if split not in manifest.splits:
        raise UsageError(f"{manifest.name} has no split {split!r}: {did_you_mean(split, manifest.splits)}.")
    if seed and not manifest.source.draws_images:
        raise UsageError(f"--seed {seed}: {manifest.name} is not drawn; leave it out.")
    if retry_failed and not manifest.source.can_retry_failed:
        raise UsageError(
            f"--retry-failed: {manifest.name} is no list of URLs; leave it out, the same command fetches what is "
            "missing."
        )
    request = DownloadRequest(
        manifest=manifest,
        split=split,
        out=out,
        limit=limit,
        seed=seed,
        retry_failed=retry_failed,
        options=DownloadOptions(
            policy=FetchPolicy(
                allow_loopback=allow_loopback, max_bytes=max_bytes, timeout_s=timeout, deadline_s=3 * timeout
            ),
            threads=threads,
            processes=processes or os.cpu_count() or 1,
        ),
        on_progress=on_progress,
    )
    summary = manifest.source.download(request)
    with writing(out, left=KEPT):
        note_manifest(out, manifest)
    return summary
