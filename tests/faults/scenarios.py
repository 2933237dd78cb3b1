"""The commands that are disturbed: what each starts from, and what it leaves."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from helpers.engine import EVERY, ScriptedEngine
from helpers.inputs import png, sha256, write_tar
from helpers.rows import make_row, shard_of, write_shard

from dialog_gen.dataset.writer import open_writer
from dialog_gen.engines.base import ENGINES, EngineEntry
from faults import contents
from faults.contents import Contents

STORED = Path(__file__).parents[1] / "data"
IMAGES = 12
REFUSED = sha256(png(5))
PAGES = {f"{number}.png": png(number) for number in range(IMAGES)}
Command = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command and its world, a folder in which it is run. Paths are relative to that folder."""

    command: Command
    prepare: Callable[[Path, str], list[Command]]
    """Writes what the command starts from, given the folder and the address of the server of `PAGES`; returns the
    commands that make the rest."""
    contents: Callable[[Path], Contents]
    """What the command leaves, read from the folder."""
    dataset: str | None = None
    """The dataset folder that the command writes; `dialog-gen verify` vouches for it. Without one, exit code 0 does."""
    midway: Command = ()
    """A command that leaves what this one has in the middle of its work, rows that are complete but for one thing."""
    damage: Callable[[Path], None] | None = None
    """Damages what was prepared: the command mends it."""
    restorable: bool = False
    """Whether another copy of what the command starts from can be had, and what it leaves may be removed."""
    weight: int = 2
    """Its share of all faults: small for slow commands."""
    sources: tuple[str, ...] = ()
    """Dataset folders that the command reads: a bit may flip there before."""
    made: tuple[str, ...] = ()
    """What the command makes: a bit may flip there once it was killed."""
    patches: Mapping[str, object] = field(default_factory=dict[str, object])
    """Name -> value: what makes several shards of few rows, and keeps all work in one process."""


class _Entry(EngineEntry):
    name = "scripted"
    description = "answers as a function of prompt, image and seed"
    needs = "name"

    def start(self, model: object, sampling: object, options: object) -> ScriptedEngine:
        return ScriptedEngine(malformed={REFUSED: EVERY})


def add_engine() -> None:
    """Registers the engine without a model that the commands name."""
    ENGINES.register("scripted")(_Entry())  # pyright: ignore[reportArgumentType]


_RUN = ("dialog-gen", "run", "--model", "m", "--engine", "scripted", "--images", "images", "--shard-size", "4")
_MAKE_SET = (*_RUN, "--max-losses", "1", "--out", "set")


def _images(work: Path, url: str) -> list[Command]:
    """Two tars; one image is damaged, and the engine has no words for another."""
    for tar in range(2):
        members: dict[str, bytes] = {}
        for number in range(tar * 6, tar * 6 + 6):
            members[f"{number:03}.png"] = png(number)[: 40 if number == 9 else None]
            members[f"{number:03}.txt"] = f"caption {number}".encode()
            members[f"{number:03}.json"] = json.dumps({"url": f"{url}/{number}.png"}).encode()
        write_tar(work / "images" / f"{'ab'[tar]}.tar", members)
    return []


def _set(work: Path, url: str) -> list[Command]:
    return [*_images(work, url), _MAKE_SET]


def _damage(work: Path) -> None:
    """A bit of the rows of a shard; a manifest; a file that belongs to nothing."""
    file = work / "set" / "data" / "a-000.parquet"
    data = bytearray(file.read_bytes())
    data[200] ^= 4
    file.write_bytes(data)
    (work / "set" / "shards" / "b-000.json").write_bytes(b"{}")
    shutil.copyfile(work / "set" / "data" / "b-001.parquet", work / "set" / "data" / "c.parquet")


def _stored(work: Path, url: str) -> list[Command]:
    del url
    shutil.copytree(STORED / "v2", work / "set")
    return []


def _bare(work: Path, url: str) -> list[Command]:
    with open_writer(str(work / "whole"), {"made_by": "test"}) as store:
        for name, first in (("a", 0), ("b", 4), ("c", 8)):
            rows = [
                make_row(number, status="rejected" if number == 6 else "accepted", url=f"{url}/{number}.png")
                for number in range(first, first + 4)
            ]
            write_shard(store, shard_of(name, len(rows)), rows)
    return [("dialog-gen", "compact", "whole", "--out", "bare", "--without-images", "--shard-mb", "1")]


def _manifest(work: Path, url: str) -> list[Command]:
    (work / "mine.toml").write_text(
        f"""name = "mine"
description = "d"
licence = "l"
[source]
kind = "archives"
[source.files]
val = [{{ url = "{url}/val.zip", into = "images/val" }}, {{ url = "{url}/q.json", into = "vqa" }}]
"""
    )
    return []


def _clip_and_set(work: Path, url: str) -> list[Command]:
    from helpers.training import write_tiny_clip  # imports torch, which makes each fork slower

    write_tiny_clip(work / "tiny", seed=0)
    return _set(work, url)


def _recipe(work: Path, url: str) -> list[Command]:
    from helpers.training import write_recipe

    commands = _clip_and_set(work, url)
    write_recipe(work, "tiny", Path("set"), top="save_every_steps = 1", optim="max_steps = 3")
    recipe = work / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("batch_size = 8", "batch_size = 4"))
    return commands


def _of(read: Callable[[Path], Contents], name: str) -> Callable[[Path], Contents]:
    return lambda work: read(work / name)


def zipped() -> bytes:
    """An archive to download."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for number in range(4):
            file.writestr(zipfile.ZipInfo(f"val/{number}.png"), png(number, (64, 64)) * 40)
    return buffer.getvalue()


SCENARIOS: dict[str, Scenario] = {
    "run": Scenario(
        command=(*_RUN, "--max-losses", "1", "--out", "out"),
        prepare=_images,
        contents=_of(contents.rows, "out"),
        dataset="out",
        made=("out",),
    ),
    "run --gates": Scenario(
        command=(*_RUN, "--max-losses", "1", "--gates", "text", "--out", "out"),
        midway=(*_RUN, "--max-losses", "1", "--out", "out"),
        prepare=_images,
        contents=_of(contents.rows, "out"),
        dataset="out",
        made=("out",),
    ),
    "gate": Scenario(
        command=("dialog-gen", "gate", "set", "--gates", "text"),
        prepare=_set,
        contents=_of(contents.rows, "set"),
        dataset="set",
        sources=("set",),
        made=("set",),
    ),
    "compact": Scenario(
        command=("dialog-gen", "compact", "set", "--out", "out", "--shard-mb", "1"),
        prepare=_set,
        contents=_of(contents.rows, "out"),
        dataset="out",
        sources=("set",),
        made=("out",),
        patches={"dialog_gen.publish.compact._stored_bytes": lambda *_: 400_000},
    ),
    "upgrade": Scenario(
        command=("dialog-gen", "upgrade", "set"),
        prepare=_stored,
        restorable=True,
        contents=_of(contents.rows, "set"),
        dataset="set",
        sources=("set",),
        made=("set",),
    ),
    "repair": Scenario(
        command=("dialog-gen", "repair", "set"),
        prepare=_set,
        damage=_damage,
        contents=_of(contents.rows, "set"),
        dataset="set",
        made=("set",),
    ),
    "rehydrate": Scenario(
        command=("dialog-gen", "rehydrate", "bare", "--out", "out", "--allow-loopback", "--threads", "4"),
        prepare=_bare,
        contents=_of(contents.rows, "out"),
        dataset="out",
        sources=("bare",),
        made=("out",),
        patches={"dialog_gen.publish.compact._stored_bytes": lambda *_: 400_000},
    ),
    "export": Scenario(
        command=("dialog-gen", "export", "set", "--to", "llava", "--out", "exported"),
        prepare=_set,
        contents=_of(contents.files, "exported"),
        weight=1,
        sources=("set",),
    ),
    "download": Scenario(
        command=("dialog-gen", "download", "mine.toml", "--out", "out", "--allow-loopback"),
        prepare=_manifest,
        contents=_of(contents.files, "out"),
    ),
    "embed": Scenario(
        command=(
            "dialog-train",
            "embed",
            "--dialogues",
            "set",
            "--model",
            "tiny",
            "--out",
            "vectors",
            "--workers",
            "0",
            "--device",
            "cpu",
        ),
        prepare=_clip_and_set,
        contents=_of(contents.vectors, "vectors"),
        restorable=True,
        weight=1,
        sources=("set",),
        made=("vectors",),
    ),
    "training": Scenario(
        command=("dialog-train", "draft", "--config", "recipe.toml", "--resume", "auto"),
        prepare=_recipe,
        contents=_of(contents.tensors, "out"),
        restorable=True,
        weight=1,
        sources=("set",),
        made=("out", "work"),
        patches={"dialog_train.data.prepare.DECODERS": 0},
    ),
}
