"""Images go in, a vision-language model talks about them, the dialogues become a checked Parquet dataset.

The Python API: each command of `dialog-gen` has a function here, with the flags as keyword arguments.

    import dialog_gen

    dialog_gen.generate(model="llava-1.5-7b", images="/data/cc3m", out="dialogues")
    for row in dialog_gen.open_dataset("dialogues").rows(["image_id", "texts"]): ...

Functions do not print and do not exit. They return a summary, raise a `DialogGenError`, and report progress to
`on_progress`. What is named here is imported when it is first used: `import dialog_gen` takes no time.
"""

from typing import TYPE_CHECKING

from dialog_gen.core.lazy import lazy_names
from dialog_gen.core.version import __version__

if TYPE_CHECKING:
    from dialog_gen.core.errors import DialogGenError as DialogGenError
    from dialog_gen.core.errors import FailedCheckError as FailedCheckError
    from dialog_gen.core.errors import UsageError as UsageError
    from dialog_gen.dataset.folder import DatasetFolder as DatasetFolder
    from dialog_gen.dataset.folder import open_dataset as open_dataset
    from dialog_gen.dataset.record import kept_pairs as kept_pairs
    from dialog_gen.dataset.rows import find_row as find_row
    from dialog_gen.dataset.rows import random_rows as random_rows
    from dialog_gen.dataset.upgrade import upgrade as upgrade
    from dialog_gen.dataset.verify import totals as totals
    from dialog_gen.download.run import download_images as download_images
    from dialog_gen.gates.apply import gate as gate
    from dialog_gen.generation.batch.read import batch_read as batch_read
    from dialog_gen.generation.batch.write import batch_write as batch_write
    from dialog_gen.generation.estimate import plan as plan
    from dialog_gen.generation.run import generate as generate
    from dialog_gen.generation.tune import tune as tune
    from dialog_gen.inspect.deep import verify as verify
    from dialog_gen.inspect.page import report as report
    from dialog_gen.inspect.statistics import stats as stats
    from dialog_gen.inspect.view import view as view
    from dialog_gen.publish.card import card as card
    from dialog_gen.publish.compact import compact as compact
    from dialog_gen.publish.export import export as export
    from dialog_gen.publish.merge import merge as merge
    from dialog_gen.publish.pull import pull as pull
    from dialog_gen.publish.push import push as push
    from dialog_gen.publish.rehydrate import rehydrate as rehydrate
    from dialog_gen.upkeep.repair import repair as repair

_API = {
    "DatasetFolder": "dialog_gen.dataset.folder",
    "DialogGenError": "dialog_gen.core.errors",
    "FailedCheckError": "dialog_gen.core.errors",
    "UsageError": "dialog_gen.core.errors",
    "batch_read": "dialog_gen.generation.batch.read",
    "batch_write": "dialog_gen.generation.batch.write",
    "card": "dialog_gen.publish.card",
    "compact": "dialog_gen.publish.compact",
    # Not `download`, which is the name of a package.
    "download_images": "dialog_gen.download.run",
    "export": "dialog_gen.publish.export",
    "find_row": "dialog_gen.dataset.rows",
    "gate": "dialog_gen.gates.apply",
    "generate": "dialog_gen.generation.run",
    "kept_pairs": "dialog_gen.dataset.record",
    "merge": "dialog_gen.publish.merge",
    "open_dataset": "dialog_gen.dataset.folder",
    "plan": "dialog_gen.generation.estimate",
    "pull": "dialog_gen.publish.pull",
    "push": "dialog_gen.publish.push",
    "random_rows": "dialog_gen.dataset.rows",
    "rehydrate": "dialog_gen.publish.rehydrate",
    "repair": "dialog_gen.upkeep.repair",
    "report": "dialog_gen.inspect.page",
    "stats": "dialog_gen.inspect.statistics",
    "totals": "dialog_gen.dataset.verify",
    "tune": "dialog_gen.generation.tune",
    "upgrade": "dialog_gen.dataset.upgrade",
    "verify": "dialog_gen.inspect.deep",
    "view": "dialog_gen.inspect.view",
}

__all__ = ["__version__", *_API]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = lazy_names(__name__, _API)
