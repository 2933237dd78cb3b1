"""Makes the stored datasets of this folder with the code of their time; README.md says how it is called."""

import importlib
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGES = "memory://images/set.parquet"
WORDS = (
    "1. Q: Is it red? A: yes 2. Q: Is it all red? A: yes. 3. Q: What is the red star? A: the red star",
    "1. Q: What color is the star? A: It is a red, a red, a red star. 2. Q: Is it big? A: no 3. Q: Where? A: Left.",
    "1. Q: How many stars are there? A: 3 2. Q: Is there a ring? A: yes 3. Q: What is it? A: " + "word " * 70,
)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16 + number), (20 * number, 255 - 20 * number, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def write_source() -> None:
    """Twelve images: number 4 is number 3 again, 6 is cut off, and nothing that can be used is said about number 7."""
    images = [png(number) for number in range(12)]
    images[4], images[6] = images[3], images[6][:60]
    table = pa.table(
        {
            "image_id": [f"image-{number:02}" for number in range(12)],
            "image": images,
            "url": [None if number == 5 else f"https://images.example/{number}.png" for number in range(12)],
            "caption": [None if number == 2 else f"a caption, number {number}" for number in range(12)],
        }
    )
    with fsspec.open(IMAGES, "wb") as file:
        pq.write_table(table, file)


def say(request: Any) -> str:
    number = request.images[0].size[1] - 16
    return "..." if number == 7 else WORDS[number % 3]


def call(cli: Any, *arguments: str) -> str:
    """What a command prints."""
    out, sys.argv = sys.stdout, ["dialog-gen", *arguments]
    sys.stdout = io.StringIO()
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        printed, sys.stdout = sys.stdout.getvalue(), out
    return printed


def run(cli: Any, out: Path, limit: int) -> None:
    arguments = ("--images", IMAGES, "--out", str(out), "--limit", str(limit), "--shard-size", "4", "--seed", "5")
    call(cli, "run", "--model", "shapes-llava", "--engine", "transformers", "--max-losses", "1", *arguments)


def dump(out: Path, into: Path) -> None:
    """The rows as Python values, without the bytes of the images."""
    found: dict[str, Any] = {}
    for part in ("data", "rejects"):
        rows = [row for file in sorted((out / part).glob("*")) for row in pq.read_table(file).to_pylist()]
        for row in rows:
            del row["images"]
            row["created_at"] = row["created_at"].isoformat()
        found[part] = rows
    into.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    folder, version = Path(sys.argv[1]), int(sys.argv[2])
    cli = importlib.import_module("dialog_gen.cli" if version == 1 else "dialog_gen.cli.app")
    engines = importlib.import_module("dialog_gen.engines" if version == 1 else "dialog_gen.engines.base")
    engine = importlib.import_module("helpers.engine")
    engines.engine_starter = lambda *_: lambda log: engine.ScriptedEngine(say=say)
    write_source()
    for name in ("v1",) if version == 1 else ("v2", "v2-gated"):
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        run(cli, out, 10)
        if name == "v2-gated":
            call(cli, "gate", str(out), "--gates", "empty,repetition,truncation,leak,near_duplicate,length,logprob")
        if version == 2:
            (folder / f"{name}.stats.json").write_text(call(cli, "stats", str(out), "--json"))
        (out / "engine.log").unlink()
        dump(out, folder / f"{name}.rows.json")


if __name__ == "__main__":
    main()
