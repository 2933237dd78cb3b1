"""The training loop of all systems, built on Accelerate. `system.py` defines what is trained and on which data.

    OUT/model/, OUT/model-ema/   the trained model, as its system writes it
    OUT/train.json               result of the training; written last, so it marks a completed training
    OUT/checkpoints/             the two newest states, to resume from with `resume = "auto"`; removed on completion
    OUT/tensorboard/             loss curves

Every process computes the losses of the whole batch, so losses and gradients do not depend on the number of processes.
All random numbers are determined by (seed, step), so a resumed training ends with the same result.
"""

import hashlib
import importlib.util
import inspect
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration
from pydantic import BaseModel, TypeAdapter
from torch import Tensor
from torch.optim import AdamW

from dialog_gen.clip.text.tower import TextTower
from dialog_gen.core.checksums import check_checksums
from dialog_gen.core.errors import FailedCheckError, MissingExtraError, UsageError
from dialog_gen.core.files import fsync, locked_folder, read_regular, write_json, writing
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.sealed_json import sealed, unsealed
from dialog_train.checkpoint import DamagedCheckpointError, Trained, read_training, save_training, saved_trainings
from dialog_train.config import CHECKPOINTS, EMA_FOLDER, MODEL_FOLDER, REPORT_FILE, Recipe
from dialog_train.optim import learning_rate, parameter_groups
from dialog_train.readings import FiniteGuard, NotFiniteError, StepValues, Sums
from dialog_train.sharding import Shards, clip_gradients, whole
from dialog_train.system import EVERYTHING, AnyBatch, Data, Share, System

Resume = Literal["never", "auto"]
OnStep = Callable[[int, Mapping[str, float]], None]

_PROJECT = "dialog-train"
# The other processes wait this long while one process prepares the data.
_PREPARATION_TIMEOUT = timedelta(hours=12)
# CLIP limits its temperature for stability (arXiv 2103.00020, section 2.5).
_LOGIT_SCALE_RANGE = (0.0, math.log(100))
# Settings that may change when a training is resumed; the fingerprint does not contain them.
_NOT_IN_FINGERPRINT: Any = {
    "out": True,
    "log": True,
    "save_every_steps": True,
    "data": {"work", "resident"},
    "optim": {"shard"},
}
_SHOWN_IDS = 8
_STAGE = "training"
_writing = partial(writing, left="--resume auto goes on from the newest checkpoint")
_JSON: Any = TypeAdapter(Any)
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
    logit scale. They are read from the device when the first of them is looked at, which waits for the step to end.

    A step of which a loss or the gradient is not finite changes nothing, nor does one after it. That is read, and
    raised, after the first step, every `log.every_steps` steps, and before a checkpoint is written.

    Raises UsageError for a batch that cannot be divided among the processes, for a folder that contains a training if
    `resume` is "never", for one to which another training is writing, and for one that contains a training of another
    recipe or only damaged checkpoints; FailedCheckError if a loss, gradient or weight is not finite; DialogGenError if
    the disk refuses a write.
    """
    with nullcontext(accelerator) if accelerator else start(recipe) as accelerator, _alone(recipe, accelerator):
        batches = _Batches(recipe, data, accelerator)
        content = recipe.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT)
        fingerprint = {"recipe": content, **system.fingerprint, "training_set": data.fingerprint}
        if done := _completed(recipe, fingerprint, resume):
            return done
        stepper = _Stepper(recipe, system, accelerator)
        first = _resumed(recipe, fingerprint, stepper.trained, accelerator.is_main_process)
        if first and accelerator.is_main_process:
            _log.info("continuing after step %d of %d", first, batches.total)
        with _without_onednn(accelerator):
            result = _train(batches, stepper, first, fingerprint, on_step, on_progress)
        stepper.trained.require_finite(result.steps)
        averages = stepper.gather()
        if accelerator.is_main_process:
            report = {**asdict(result), "processes": accelerator.num_processes, "device": accelerator.device.type}
            packages = ("accelerate", "open_clip_torch", "torch")
            report["method"] = (inspect.getdoc(type(recipe)) or "").partition("\n")[0]
            report |= {**fingerprint, "model": system.name, "versions": {name: version(name) for name in packages}}
            with _writing(recipe.out):
                system.save(recipe.out / MODEL_FOLDER, {})
                if averages is not None:
                    system.save(recipe.out / EMA_FOLDER, averages)
                write_json(recipe.out / REPORT_FILE, sealed(report))
                fsync(recipe.out / REPORT_FILE)
                fsync(recipe.out)
            shutil.rmtree(recipe.out / CHECKPOINTS, ignore_errors=True)
        accelerator.wait_for_everyone()
        return result


@contextmanager
def _alone(recipe: Recipe, accelerator: Accelerator) -> Generator[None]:
    """Keeps other trainings out of the recipe's folder. Raises UsageError if one is writing to it."""
    with ExitStack() as stack:
        if accelerator.is_main_process:
            with _writing(recipe.out):
                stack.enter_context(locked_folder(recipe.out, "training"))
        yield


def _without_onednn(accelerator: Accelerator) -> AbstractContextManager[None]:
    """PyTorch's own kernels in float32 on a CPU, which are as fast here.

    oneDNN keeps a program for GELU on each shape, and batches of texts have ever new numbers of tokens: a training that
    needs 1 GB of memory had 7 after 2,600 steps.
    """
    plain = accelerator.device.type == "cpu" and accelerator.mixed_precision == "no"
    if not plain:
        return nullcontext()
    # None leaves a setting as it is; the defaults of `flags` ask for TF32, which warns.
    unchanged: Any = dict.fromkeys(("deterministic", "allow_tf32", "fp32_precision"))
    return torch.backends.mkldnn.flags(enabled=False, **unchanged)


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
        self._limits_logit_scale = system.logit_scale is not None and system.logit_scale.requires_grad
        parameters = system.trainable
        groups = parameter_groups(system.model, parameters, recipe.optim.weight_decay)
        self._shards: Shards | None = None
        if recipe.optim.shard and accelerator.num_processes > 1:
            if not getattr(system, "may_be_sharded", False):
                raise UsageError(f"optim.shard: {system.name} is of a system that cannot be sharded.")
            self._shards = shards = Shards(system.module.to(accelerator.device))
            parameters = {name: shards.of(parameter) for name, parameter in parameters.items()}
            groups = [{**group, "params": [shards.of(one) for one in group["params"]]} for group in groups]
        optimizer = AdamW(
            groups,
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
        if recipe.optim.compile:
            towers = [one for one in system.module.modules() if isinstance(one, TextTower) and one.packs]
            if not towers:
                raise UsageError(
                    f"optim.compile: {system.name} has no text tower that can be compiled, as open_clip's own causal "
                    "towers, BERT, RoBERTa and XLM-RoBERTa can. Leave it out."
                )
            for tower in towers:
                tower.compile_blocks()
        self._module: Any = (system.module if self._shards else accelerator.prepare(system.module)).train()
        self._optimizer: Any = accelerator.prepare(optimizer)
        ema = {name: p.detach().clone() for name, p in parameters.items()} if recipe.optim.ema_decay else None
        self._raw_optimizer, self._guard = optimizer, FiniteGuard(accelerator.device)
        self.trained = Trained(
            parameters=parameters,
            optimizer=optimizer,
            ema=ema,
            scaler=accelerator.scaler,
            is_sharded=self._shards is not None,
        )

    def step(self, step: int, total: int, batch: AnyBatch) -> StepValues:
        """Performs step `step`, counted from 0: updates the weights and returns the values to log.

        It does not wait for the device. It changes nothing if a loss or the gradient of this step or of an earlier one
        is not finite; then `require_finite` raises NotFiniteError.
        """
        optim, parameters = self.recipe.optim, self.trained.parameters
        lr = learning_rate(step, total, optim)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        # Seeds dropout, in towers that have it, and noise.
        torch.manual_seed(_step_seed(self.recipe.seed, step, self.accelerator.process_index))
        self._optimizer.zero_grad()
        # The same as in a module that Accelerate prepared.
        with self.accelerator.autocast() if self._shards else nullcontext():
            parts: dict[str, Tensor] = self._module(batch.to(self.accelerator.device))
        loss = torch.stack(list(parts.values())).sum()
        self.accelerator.backward(loss)
        most = optim.grad_clip or math.inf
        if self._shards is None:
            norm: Any = self.accelerator.clip_grad_norm_(parameters.values(), most)
        else:
            self._shards.average_whole_gradients()
            norm = clip_gradients(parameters.values(), most)
        shown = {**parts, "loss": loss, "gradient_norm": norm}
        if self._logit_scale is not None:
            shown["logit_scale"] = self._logit_scale.reshape(()).exp()
        values = StepValues(shown, {"lr": lr})
        if self.accelerator.scaler is None:
            self._guard.check(step, values)
            self._raw_optimizer.found_inf = self._guard.found_inf  # type: ignore[attr-defined]
        else:
            # In fp16 gradients overflow occasionally: the scaler skips such a step, and reads that from the device.
            self._guard.check(step, StepValues({name: shown[name] for name in shown if name != "gradient_norm"}, {}))
            self._guard.require_finite()
        self._optimizer.step()
        with torch.no_grad():
            if self._logit_scale is not None and self._limits_logit_scale:
                self._logit_scale.clamp_(*_LOGIT_SCALE_RANGE)
            if self.trained.ema is not None and optim.ema_decay:
                for name, average in self.trained.ema.items():
                    average.lerp_(parameters[name], 1 - optim.ema_decay)
        return values

    def require_finite(self) -> None:
        """Raises NotFiniteError if a step had a loss or a gradient that is not finite; waits for the device."""
        self._guard.require_finite()

    def gather(self) -> dict[str, Tensor] | None:
        """Makes the model whole in every process; returns the moving average of the weights, if there is one."""
        ema = self.trained.ema
        averages = None if ema is None else {name: whole(average) for name, average in ema.items()}
        if self._shards is not None:
            self._shards.gather()
        return averages


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
    sums, point = Sums(), dict[str, float]()
    on_progress(_STAGE, first, batches.total)
    for step, batch in enumerate(batches.from_step(first), first):
        logs = (step + 1) % recipe.log.every_steps == 0 or step + 1 == batches.total
        saves = bool(recipe.save_every_steps and (step + 1) % recipe.save_every_steps == 0)
        try:
            values = stepper.step(step, batches.total, batch)
            if logs or saves or step == first:
                stepper.require_finite()
        except NotFiniteError as error:
            raise _not_finite(batches, error.step, str(error), accelerator.is_main_process) from None
        if on_step:
            on_step(step + 1, values)
        if step == first:
            began = time.perf_counter()
        # These statistics cover only this process's share of the batch; the whole batch may contain more duplicates.
        sums.add(values, batch.statistics())
        if logs:
            point = sums.means()
            if step > first:
                rate = (step - first) * recipe.optim.batch_size / (time.perf_counter() - began)
            point |= {"epoch": (step + 1) / batches.data.steps_per_epoch, "pairs_per_s": rate}
            with _writing(recipe.out):
                accelerator.log(point, step=step + 1)
            note = f"loss {point['loss']:.4f}  {rate:.0f} pairs/s"
            if accelerator.is_main_process:
                points_log.info("step %d of %d: %s", step + 1, batches.total, note)
            sums = Sums()
        on_progress(_STAGE, step + 1, batches.total, note=note)
        writes = accelerator.is_main_process
        if saves and (writes or stepper.trained.is_sharded):
            with _writing(recipe.out):
                save_training(recipe.out / CHECKPOINTS, step + 1, stepper.trained, fingerprint, writes=writes)
    losses = {name: value for name, value in point.items() if name.endswith("loss")}
    return FitResult(steps=batches.total, pairs_per_s=rate, losses=losses)


def _completed(recipe: Recipe, fingerprint: dict[str, Any], resume: Resume) -> FitResult | None:
    """The result of a completed training in the recipe's folder, or None.

    Raises UsageError if the training may not be continued.
    """
    out = recipe.out
    report = out / REPORT_FILE
    if resume == "never":
        if report.exists() or saved_trainings(out / CHECKPOINTS):
            raise UsageError(f"{out} contains a training: continue it with --resume auto, or choose another out.")
        return None
    if not report.exists():
        return None
    try:
        found = unsealed(read_regular(report))
        result = FitResult(**{name: found[name] for name in ("steps", "pairs_per_s", "losses")})
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{report} is damaged: remove it; --resume auto then trains again.") from None
    _require_same_training(recipe, found, fingerprint)
    for folder in (out / MODEL_FOLDER, *([out / EMA_FOLDER] if recipe.optim.ema_decay else ())):
        if not folder.is_dir():
            raise UsageError(f"{folder} is missing: put it back, or remove {report}; --resume auto then trains again.")
        try:
            check_checksums(folder)
        except UsageError as error:
            raise UsageError(f"{error} To train again, remove {report}.") from None
    _log.info("%s is complete: nothing to do", out)
    return result


def _resumed(recipe: Recipe, fingerprint: dict[str, Any], trained: Trained, is_main: bool) -> int:
    """Restores the newest intact checkpoint, if there is a checkpoint, and returns the number of completed steps.

    Raises UsageError if no checkpoint is intact, or if it is of another training.
    """
    out, damaged = recipe.out, list[DamagedCheckpointError]()
    for file in saved_trainings(out / CHECKPOINTS):
        try:
            saved = read_training(file)
        except DamagedCheckpointError as error:
            damaged.append(error)
            continue
        for error in damaged if is_main else ():
            _log.warning("%s: the training goes back to step %d", error, saved.step)
        _require_same_training(recipe, saved.fingerprint, fingerprint)
        saved.restore(trained)
        return saved.step
    if damaged:
        raise UsageError(
            f"{damaged[0]}, and no earlier checkpoint is intact: put back a copy, or remove {out / CHECKPOINTS} to "
            "start again from the first step."
        )
    return 0


def _require_same_training(recipe: Recipe, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = {name: found.get(name) for name in wanted}
    found["recipe"] = _with_defaults(type(recipe), found["recipe"], wanted["recipe"])
    there, now = _flat(found), _flat(wanted)
    keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
    if keys:
        differing = "; ".join(f"{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in keys)
        raise UsageError(f"{recipe.out} contains a training of another recipe ({differing}): choose another out.")


def _with_defaults(settings: Any, found: Any, wanted: Any) -> Any:
    """A table of an earlier recipe, with the defaults of options of `settings` that it lacks because they are newer.

    `wanted` is the same table of the present recipe; options that it lacks do not count.
    """
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return found
    filled: dict[str, Any] = dict(found)
    for name, field in settings.model_fields.items():
        if name not in wanted:
            continue
        if name not in filled and not field.is_required():
            filled[name] = _JSON.dump_python(field.get_default(call_default_factory=True), mode="json")
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel) and name in filled:
                filled[name] = _with_defaults(kind, filled[name], wanted[name])
    return filled


def _not_finite(batches: _Batches, step: int, what: str, is_main: bool) -> FailedCheckError:
    ids = list(batches.data.batch(step, EVERYTHING).image_ids)
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
