"""Runs a few steps of a recipe at its full size, before any weights or data are downloaded.

The model has random weights, the data are synthetic texts and images; everything else is what `train` does: the data
are prepared, the steps run, the model is written and loaded again. All files are in a temporary folder.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialog_gen.core.errors import FailedCheckError, UsageError
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_train.api import train
from dialog_train.config import Recipe

_STAGE = "training"
# d_model, d_ff, layers, heads of the T5s on the Hub (arXiv 1910.10683), so that a dry run needs no network.
_T5 = {
    "google-t5/t5-small": (512, 2048, 6, 8),
    "google-t5/t5-base": (768, 3072, 12, 12),
    "google-t5/t5-large": (1024, 4096, 24, 16),
}
_T5_VOCABULARY, _T5_KEY_WIDTH = 32128, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRunStage:
    """What one training of a recipe took; most recipes have one, a recipe in stages one for each stage."""

    stage: int
    device: str
    batch_size: int
    """Images per step, over all processes."""
    steps: int
    pairs_per_s: float
    """Images per second over all processes, without the first step."""
    peak_bytes: int
    """On a GPU, the most that its tensors took while this stage was trained; on a CPU, the most that the process took
    since its start."""


def dry_run(
    recipe: Recipe, *, steps: int = 5, batch_size: int | None = None, on_progress: OnProgress = ignore_progress
) -> list[DryRunStage]:
    """Runs `steps` steps of each stage of a recipe, with batches of at most `batch_size` images.

    Raises FailedCheckError if the memory is not enough or if the written model cannot be loaded, and what `train`
    raises.
    """
    if steps < 2:
        raise UsageError(f"a dry run needs 2 steps to measure a rate, got {steps}.")
    with tempfile.TemporaryDirectory(prefix="dialog-train-") as folder:
        trial = _trial(recipe, Path(folder), steps, batch_size)
        meter = _Meter(on_progress)
        try:
            result = train(trial, on_progress=meter)
            _check_loads(result.model)
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            largest = max(_batch_sizes(trial.model_dump()))
            raise FailedCheckError(
                f"a batch of {largest} does not fit into the memory ({meter.device}). Lower batch_size here with "
                "--batch-size, or use more GPUs: each takes its share of the batch."
            ) from None
        return [
            _figures(file, number, steps, peak, meter.device)
            for number, (file, peak) in enumerate(zip(_reports(trial), meter.peaks, strict=True), 1)
        ]


def _trial(recipe: Recipe, folder: Path, steps: int, batch_size: int | None) -> Recipe:
    """The recipe with random weights, synthetic data, few steps, and all its files in `folder`."""
    from dialog_train.data.synthetic import write_synthetic_dialogues

    content: dict[str, Any] = recipe.model_dump()
    content |= {"out": folder / "out", "save_every_steps": None}
    content["log"] |= {"tensorboard": False, "wandb": False}
    data = content["data"]
    if "images" in data:
        data["images"] = None
    data |= {"dialogues": str(folder / "dialogues"), "work": folder / "work", "kept_only": False}
    for table in (content["optim"], *content.get("stages", ())):
        table["max_steps"] = steps
        for name in ("batch_size", "text_batch_size"):
            if batch_size is not None and table.get(name):
                table[name] = min(table[name], batch_size)
    if content["pretrained"] is not None:
        content |= {"model": str(_random_model(content["model"], folder / "clip")), "pretrained": None}
    name = content.get("decoder", {}).get("name")
    if name in _T5:
        content["decoder"] |= {"name": str(_random_t5(name, folder / "t5")), "revision": None}
    write_synthetic_dialogues(folder / "dialogues", max(_batch_sizes(content)))
    return type(recipe).model_validate(content)


def _batch_sizes(content: dict[str, Any]) -> list[int]:
    tables = (content["optim"], *content.get("stages", ()))
    return [table[name] for table in tables for name in ("batch_size", "text_batch_size") if table.get(name)]


def _random_model(name: str, folder: Path) -> Path:
    from dialog_gen.clip.loader import new_clip, save_clip

    save_clip(new_clip(name, 0), folder)
    return folder


def _random_t5(name: str, folder: Path) -> Path:
    from dialog_gen.clip.close.decoder import new_t5, word_tokenizer
    from dialog_train.data.synthetic import synthetic_words

    width, inner, layers, heads = _T5[name]
    tokenizer: Any = word_tokenizer(synthetic_words())
    t5 = new_t5(
        tokenizer,
        width=width,
        layers=layers,
        heads=heads,
        vocabulary=_T5_VOCABULARY,
        inner=inner,
        head_width=_T5_KEY_WIDTH,
    )
    t5.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class _Meter:
    """Passes progress on, and notes the peak of memory of each training."""

    def __init__(self, on_progress: OnProgress) -> None:
        import torch

        self._on_progress, self._cuda = on_progress, torch.cuda
        self._has_gpu = torch.cuda.is_available()
        self.device = torch.cuda.get_device_name() if self._has_gpu else "CPU"
        self.peaks: list[int] = []

    def __call__(self, stage: str, done: int, total: int | None, unit: str = "", note: str = "") -> None:
        if stage == _STAGE and done == 0 and self._has_gpu:
            self._cuda.reset_peak_memory_stats()
        if stage == _STAGE and done == total:
            self.peaks.append(self._cuda.max_memory_allocated() if self._has_gpu else _process_peak())
        self._on_progress(stage, done, total, unit, note)


def _process_peak() -> int:
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes.
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _reports(recipe: Recipe) -> list[Path]:
    from dialog_train.loop import REPORT_FILE

    stages = sorted(recipe.out.glob(f"stage-*/{REPORT_FILE}"))
    return stages or [recipe.out / REPORT_FILE]


def _figures(report: Path, stage: int, steps: int, peak: int, device: str) -> DryRunStage:
    found = json.loads(report.read_text(encoding="utf-8"))
    batch_size = int(found["recipe"]["optim"]["batch_size"])
    rate = float(found["pairs_per_s"])
    return DryRunStage(
        stage=stage, device=device, batch_size=batch_size, steps=steps, pairs_per_s=rate, peak_bytes=peak
    )


def _check_loads(model: Path) -> None:
    from dialog_gen.clip.loader import load_clip

    try:
        load_clip(str(model), needs=())
    except UsageError as error:
        raise FailedCheckError(f"the model that the dry run wrote cannot be loaded: {error}") from None
