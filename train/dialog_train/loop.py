"""The training loop of all systems, built on Accelerate. `system.py` defines what is trained and on which data.

    OUT/model/, OUT/model-ema/   the trained model, as its system writes it
    OUT/train.json               result of the training; written last, so it marks a completed training
    OUT/checkpoints/             state to resume from with `resume = "auto"`; removed on completion
    OUT/tensorboard/             loss curves

Every process computes the losses of the whole batch, so losses and gradients do not depend on the number of processes.
All random numbers are determined by (seed, step), so a resumed training ends with the same result.
"""

import hashlib
import importlib.util
import json
import logging
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor
from torch.optim import AdamW

from dialog_gen.core.errors import FailedCheckError, MissingExtraError, UsageError
from dialog_gen.core.files import write_json, writing
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_train.checkpoint import Trained, load_training, newest_training, read_fingerprint, save_training
from dialog_train.config import Recipe
from dialog_train.optim import learning_rate, parameter_groups
from dialog_train.system import EVERYTHING, AnyBatch, Data, Share, System

REPORT_FILE, MODEL_FOLDER, EMA_FOLDER = "train.json", "model", "model-ema"
Resume = Literal["never", "auto"]
OnStep = Callable[[int, dict[str, float]], None]

_CHECKPOINTS = "checkpoints"
_PROJECT = "dialog-train"
# The other processes wait this long while one process prepares the data.
_PREPARATION_TIMEOUT = timedelta(hours=12)
# CLIP limits its temperature for stability (arXiv 2103.00020, section 2.5).
_LOGIT_SCALE_RANGE = (0.0, math.log(100))
# Settings that may change when a training is resumed; the fingerprint does not contain them.
_NOT_IN_FINGERPRINT: Any = {"out": True, "log": True, "save_every_steps": True, "data": {"work"}}
_SHOWN_IDS = 8
_STAGE = "training"
_writing = partial(writing, left="--resume auto goes on from the newest checkpoint")
_log = logging.getLogger(__name__)
points_log = logging.getLogger(f"{__name__}.points")
"""Logs one line per point of the loss curves; used where no progress bar is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Result of a training; also in OUT/train.json."""

    steps: int
    pairs_per_s: float
    """Images per second over all processes, without the first step of a run."""
    losses: dict[str, float]
    """Means over the steps of the last log point; `loss` is the sum of the others."""


@contextmanager
def start(recipe: Recipe) -> Generator[Accelerator]:
    """Sets up Accelerate for a recipe, logs the number of processes, and ends trackers and processes on exit.

    Raises UsageError for a precision that the device does not support, MissingExtraError for a tracker that is not
    installed.
    """
    trackers: Any = [name for name in ("tensorboard", "wandb") if getattr(recipe.log, name)]
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"log.{name} = true", "train", f"or set log.{name} = false")
    accelerator = Accelerator(
        mixed_precision=recipe.optim.precision,
        log_with=trackers or None,
        project_config=ProjectConfiguration(str(recipe.out), str(recipe.out / "tensorboard")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PREPARATION_TIMEOUT)],
    )
    try:
        if recipe.optim.precision == "fp16" and accelerator.device.type == "cpu":
            raise UsageError('optim.precision = "fp16" needs a GPU: choose "no" or "bf16".')
        if accelerator.is_main_process:
            _log.info("training on %d x %s", accelerator.num_processes, accelerator.device.type)
            # `accelerate launch --cpu --num_processes 2` starts a single process with this environment.
            if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
                _log.warning(
                    "this is the only process, although more were requested. On a CPU start them with torchrun or "
                    "dialog-train SYSTEM --processes N"
                )
        yield accelerator
    except BaseException:
        # An error of a tracker would hide the cause.
        with suppress(Exception):
            accelerator.end_training()
        raise
    # A process that exits without leaving its process group may abort.
    with _writing(recipe.out):
        accelerator.end_training()


def fit(
    recipe: Recipe,
    system: System,
    data: Data,
    *,
    accelerator: Accelerator | None = None,
    resume: Resume = "never",
    on_step: OnStep | None = None,
    on_progress: OnProgress = ignore_progress,
) -> FitResult:
    """Trains a system in place and writes its model to the recipe's folder.

    `on_step` is called with the number of each step, counted from 1, and its losses, learning rate, gradient norm and
    logit scale.

    Raises UsageError for a batch that cannot be divided among the processes, for a folder that contains a training if
    `resume` is "never", and for a folder that contains a training of another recipe; FailedCheckError if a loss or
    gradient is not finite; DialogGenError if the disk refuses a write.
    """
    with nullcontext(accelerator) if accelerator else start(recipe) as accelerator:
        batches = _Batches(recipe, data, accelerator)
        content = recipe.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT)
        fingerprint = {"recipe": content, **system.fingerprint, "training_set": data.fingerprint}
        if done := _completed(recipe.out, fingerprint, resume):
            return done
        stepper = _Stepper(recipe, system, accelerator)
        first = _resumed(recipe.out, fingerprint, stepper.trained)
        if first and accelerator.is_main_process:
            _log.info("continuing after step %d of %d", first, batches.total)
        result = _train(batches, stepper, first, fingerprint, on_step, on_progress)
        if accelerator.is_main_process:
            report = {**asdict(result), "processes": accelerator.num_processes, "device": accelerator.device.type}
            packages = ("accelerate", "open_clip_torch", "torch")
            report |= {**fingerprint, "model": system.name, "versions": {name: version(name) for name in packages}}
            with _writing(recipe.out):
                system.save(recipe.out / MODEL_FOLDER, {})
                if stepper.trained.ema is not None:
                    system.save(recipe.out / EMA_FOLDER, stepper.trained.ema)
                write_json(recipe.out / REPORT_FILE, report)
            shutil.rmtree(recipe.out / _CHECKPOINTS, ignore_errors=True)
        accelerator.wait_for_everyone()
        return result


class _Batches:
    """The batches of a training; they do not depend on the number of processes."""

    def __init__(self, recipe: Recipe, data: Data, accelerator: Accelerator) -> None:
        self.recipe, self.data = recipe, data
        self.total = recipe.optim.max_steps or recipe.optim.epochs * data.steps_per_epoch
        self._share = Share(accelerator.process_index, accelerator.num_processes)

    def from_step(self, first: int) -> Iterator[AnyBatch]:
        """Yields this process's share of each step from `first` on; reads the next batch in the background."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.data.batch, first, self._share)
            for step in range(first, self.total):
                batch = ahead.result()
                if step + 1 < self.total:
                    ahead = pool.submit(self.data.batch, step + 1, self._share)
                yield batch


class _Stepper:
    """A system with its optimizer; performs single training steps."""

    def __init__(self, recipe: Recipe, system: System, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self._logit_scale = system.logit_scale
        parameters = system.trainable
        optimizer = AdamW(
            parameter_groups(system.model, parameters, recipe.optim.weight_decay),
            lr=recipe.optim.lr,
            betas=recipe.optim.betas,
            eps=recipe.optim.eps,
            fused=True,
        )
        # Buffers are constant, so they need not be broadcast.
        untyped: Any = accelerator
        untyped.ddp_handler = DistributedDataParallelKwargs(
            find_unused_parameters=system.may_leave_parameters_unused, broadcast_buffers=False
        )
        self._module: Any = accelerator.prepare(system.module).train()
        self._optimizer: Any = accelerator.prepare(optimizer)
        ema = {name: p.detach().clone() for name, p in parameters.items()} if recipe.optim.ema_decay else None
        self.trained = Trained(parameters=parameters, optimizer=optimizer, ema=ema)

    def step(self, step: int, total: int, batch: AnyBatch) -> dict[str, float]:
        """Performs step `step`, counted from 0: updates the weights and returns the values to log.

        Raises FloatingPointError before the update if the loss or the gradient is not finite.
        """
        optim, parameters = self.recipe.optim, self.trained.parameters
        lr = learning_rate(step, total, optim)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        # Seeds dropout, in towers that have it, and noise.
        torch.manual_seed(_step_seed(self.recipe.seed, step, self.accelerator.process_index))
        self._optimizer.zero_grad()
        parts: dict[str, Tensor] = self._module(batch.to(self.accelerator.device))
        loss = torch.stack(list(parts.values())).sum()
        self.accelerator.backward(loss)
        norm: Any = self.accelerator.clip_grad_norm_(parameters.values(), optim.grad_clip or math.inf)
        shown = {**parts, "loss": loss, "gradient_norm": norm}
        if self._logit_scale is not None:
            shown["logit_scale"] = self._logit_scale.reshape(()).exp()
        # One transfer from the device per step.
        values: dict[str, float] = dict(zip(shown, torch.stack(list(shown.values())).tolist(), strict=True))
        # In half precision gradients overflow occasionally; the scaler skips such a step.
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if wrong and not (self.accelerator.scaler is not None and wrong == ["gradient_norm"]):
            raise FloatingPointError(", ".join(f"{name} is {values[name]}" for name in wrong))
        self._optimizer.step()
        with torch.no_grad():
            if self._logit_scale is not None:
                self._logit_scale.clamp_(*_LOGIT_SCALE_RANGE)
            if self.trained.ema is not None and optim.ema_decay:
                for name, average in self.trained.ema.items():
                    average.lerp_(parameters[name], 1 - optim.ema_decay)
        return {**values, "lr": lr}


def _train(
    batches: _Batches,
    stepper: _Stepper,
    first: int,
    fingerprint: dict[str, Any],
    on_step: OnStep | None,
    on_progress: OnProgress,
) -> FitResult:
    recipe, accelerator = batches.recipe, stepper.accelerator
    with _writing(recipe.out):
        accelerator.init_trackers(
            _PROJECT,
            _flat(fingerprint),
            {"tensorboard": {"purge_step": first}, "wandb": {"name": recipe.out.name, "dir": str(recipe.out)}},
        )
    began, rate, note = time.perf_counter(), 0.0, ""
    sums, point = Counter[str](), dict[str, float]()
    on_progress(_STAGE, first, batches.total)
    for step, batch in enumerate(batches.from_step(first), first):
        try:
            values = stepper.step(step, batches.total, batch)
        except FloatingPointError as error:
            raise _not_finite(batches, step, str(error), accelerator.is_main_process) from None
        if on_step:
            on_step(step + 1, values)
        if step == first:
            began = time.perf_counter()
        else:
            rate = (step - first) * recipe.optim.batch_size / (time.perf_counter() - began)
        # These statistics cover only this process's share of the batch; the whole batch may contain more duplicates.
        sums.update({**values, **batch.statistics(), "steps": 1})
        if (step + 1) % recipe.log.every_steps == 0 or step + 1 == batches.total:
            point = {name: total / sums["steps"] for name, total in sums.items() if name != "steps"}
            point |= {"epoch": (step + 1) / batches.data.steps_per_epoch, "pairs_per_s": rate}
            with _writing(recipe.out):
                accelerator.log(point, step=step + 1)
            note = f"loss {point['loss']:.4f}  {rate:.0f} pairs/s"
            if accelerator.is_main_process:
                points_log.info("step %d of %d: %s", step + 1, batches.total, note)
            sums.clear()
        on_progress(_STAGE, step + 1, batches.total, note=note)
        due = recipe.save_every_steps and (step + 1) % recipe.save_every_steps == 0
        if due and accelerator.is_main_process:
            with _writing(recipe.out):
                save_training(recipe.out / _CHECKPOINTS, step + 1, stepper.trained, fingerprint)
    losses = {name: value for name, value in point.items() if name.endswith("loss")}
    return FitResult(steps=batches.total, pairs_per_s=rate, losses=losses)


def _completed(out: Path, fingerprint: dict[str, Any], resume: Resume) -> FitResult | None:
    """The result of a completed training in `out`, or None. Raises UsageError if the training may not be continued."""
    report = out / REPORT_FILE
    if resume == "never":
        if report.exists() or newest_training(out / _CHECKPOINTS):
            raise UsageError(f"{out} contains a training: continue it with --resume auto, or choose another out.")
        return None
    if not report.exists():
        return None
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        result = FitResult(**{name: found[name] for name in ("steps", "pairs_per_s", "losses")})
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{report} is damaged: remove it.") from None
    _require_same_training(out, {name: found.get(name) for name in fingerprint}, fingerprint)
    _log.info("%s is complete: nothing to do", out)
    return result


def _resumed(out: Path, fingerprint: dict[str, Any], trained: Trained) -> int:
    """Restores the newest checkpoint, if there is one, and returns the number of completed steps."""
    file = newest_training(out / _CHECKPOINTS)
    if file is None:
        return 0
    found = read_fingerprint(file)
    _require_same_training(out, {name: found.get(name) for name in fingerprint}, fingerprint)
    load_training(file, trained)
    return found["step"]


def _require_same_training(out: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    there, now = _flat(found), _flat(wanted)
    keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if keys:
        differing = "; ".join(f"{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise UsageError(f"{out} contains a training of another recipe ({differing}): choose another out.")


def _not_finite(batches: _Batches, step: int, what: str, is_main: bool) -> FailedCheckError:
    ids = batches.data.batch(step, EVERYTHING).image_ids
    file = batches.recipe.out / "not-finite.json"
    if is_main:
        write_json(file, {"step": step + 1, "what": what, "image_ids": ids})
    more = ", ..." if len(ids) > _SHOWN_IDS else ""
    return FailedCheckError(
        f"step {step + 1}: {what}. The batch's images: {', '.join(ids[:_SHOWN_IDS])}{more} (all {len(ids)} in {file}). "
        "Try a lower optim.lr, optim.grad_clip, or another optim.precision."
    )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested tables to "table.key", with values that trackers accept."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat


def _step_seed(*values: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:7])
