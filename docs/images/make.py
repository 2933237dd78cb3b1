"""Makes the pictures of the documentation from a run of shapes-llava, in headless Chromium.

    python docs/images/make.py            # about a minute on a CPU; needs chromium or google-chrome

It writes report.png, the top of `dialog-gen report`, and row.png, one row as a person sees it.
"""

import base64
import html
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

import dialog_gen

HERE = Path(__file__).parent
IMAGES, ROW = 256, 5
GATES = "[length]\n[leak]\n[near_duplicate]\n[yes_bias]\n[logprob]\nmin = -0.4\n"
MOST_BYTES = 150_000

_STYLE = """
body { margin: 0; padding: 16px; background: #fff; color: #1a1a1a; display: flex; gap: 24px }
body { font: 17px/1.45 system-ui, sans-serif }
img { width: 208px; height: 208px; image-rendering: pixelated; border-radius: 6px }
p { margin: 0 0 8px }
dt, .caption { color: #5a5a5a }
.caption { font-style: italic }
dd { margin: 0 0 6px; font-weight: 600 }
"""


def row_page(row: dict[str, Any]) -> str:
    """One row of a dataset as an HTML page: its image, caption and pairs."""
    image = base64.b64encode(row["images"][0]["bytes"]).decode()
    pairs = "".join(
        f"<dt>{html.escape(pair['user'])}</dt><dd>{html.escape(pair['assistant'])}</dd>" for pair in row["texts"]
    )
    caption = html.escape(row["caption"] or "")
    return (
        f'<!doctype html><meta charset="utf-8"><style>{_STYLE}</style><img src="data:;base64,{image}">'
        f'<div><p class="caption">caption: “{caption}”</p><dl>{pairs}</dl></div>'
    )


def screenshot(page: Path, out: Path, width: int, height: int) -> None:
    """A picture of a page, with few colors, so that it is small. Raises SystemExit without a browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        sys.exit("no chromium or google-chrome on the PATH")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"]
    command = [browser, *flags, f"--screenshot={out}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - a browser and our own page
    Image.open(out).convert("RGB").quantize(224, dither=Image.Dither.NONE).save(out, optimize=True)
    if out.stat().st_size > MOST_BYTES:
        sys.exit(f"{out} has {out.stat().st_size} bytes, more than {MOST_BYTES}")


def main() -> None:
    """Makes the dataset in a temporary folder, and the pictures from it."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        dialog_gen.download_images("shapes", out=work / "shapes", split="test", limit=IMAGES)
        (work / "gates.toml").write_text(GATES, encoding="utf-8")
        dialog_gen.generate(
            model="shapes-llava",
            images=str(work / "shapes/images"),
            out=str(work / "dialogues"),
            engine="transformers",
            gates=str(work / "gates.toml"),
        )
        dialog_gen.report(str(work / "dialogues"), work / "report.html")
        screenshot(work / "report.html", HERE / "report.png", 1300, 760)
        rows = dialog_gen.open_dataset(str(work / "dialogues")).rows(["images", "caption", "texts"])
        row = next(row for number, row in enumerate(rows) if number == ROW)
        (work / "row.html").write_text(row_page(row), encoding="utf-8")
        screenshot(work / "row.html", HERE / "row.png", 640, 256)


if __name__ == "__main__":
    main()
