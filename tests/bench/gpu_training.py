"""Training rates on a GPU, with random weights and synthetic rows: pairs/s, share of the card's peak, memory, idleness.

    python tests/bench/gpu_training.py            # under 4 minutes on one H100; needs open_clip, no network
    python tests/bench/gpu_training.py --tiny     # a check of this script on a CPU: its figures mean nothing

Rows: the plain open_clip loop that one writes first (77 tokens, cached image vectors); DRAFT through the product's own
loop at several batch sizes, with and without MMD; a larger text tower; CLIP's pre-training of both towers; MaMMUT; and
with --more RoBERTa's text tower, with its dropout and without, and compiled layers. Each has a process of its own. The
peak is a product of two matrices of 8,192 in bf16, measured in the same run, and a share of it counts the
multiplications of real tokens only. Rows appear as they are measured; exits with 1 if one was not.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

# Tokens of CC3M's captions and of LLaVA's question-answer pairs, start and end included: mean, spread, most.
CAPTION_TOKENS, DIALOGUE_TOKENS = (14, 5, 50), (24, 7, 77)
START, END = 49406, 49407
ROBERTA = "roberta-ViT-B-32"
STEPS, WARM_STEPS, PROFILED_STEPS = 24, 8, 6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement."""

    name: str
    kind: str
    """ "plain", "draft" or the name of a shipped recipe that is run for a few steps."""
    model: str = "ViT-B-32"
    batch_size: int = 1536
    mini_batch_size: int | None = None
    mmd_weight: float = 1.0
    dropout: float = 0.1
    """Of RoBERTa's text tower; open_clip's has none."""
    compile: bool = False


ROWS = (
    Row(name="plain open_clip loop", kind="plain"),
    Row(name="DRAFT", kind="draft"),
    Row(name="DRAFT without MMD", kind="draft", mmd_weight=0),
    Row(name="DRAFT, batch 8,192", kind="draft", batch_size=8192),
    Row(name="DRAFT, batch 8,192, without MMD", kind="draft", batch_size=8192, mmd_weight=0),
    Row(name="DRAFT, batch 16,384", kind="draft", batch_size=16384, mini_batch_size=8192),
    Row(name="DRAFT, batch 16,384, without MMD", kind="draft", batch_size=16384, mini_batch_size=8192, mmd_weight=0),
    Row(name="DRAFT, batch 32,768", kind="draft", batch_size=32768, mini_batch_size=8192),
    Row(name="DRAFT, text tower of ViT-L/14", kind="draft", model="ViT-L-14"),
    Row(name="CLIP, both towers", kind="clip-vit-b-32", batch_size=1024),
    Row(name="MaMMUT", kind="mammut-vit-b-32", batch_size=256),
)
# With --more: compiling takes up to a minute.
MORE = (
    Row(name="DRAFT, RoBERTa", kind="draft", model=ROBERTA),
    Row(name="DRAFT, RoBERTa without dropout", kind="draft", model=ROBERTA, dropout=0),
    Row(name="DRAFT, compiled", kind="draft", compile=True),
    Row(name="DRAFT, RoBERTa without dropout, compiled", kind="draft", model=ROBERTA, dropout=0, compile=True),
)
# Left out of a check on a CPU: minutes a step.
HEAVY = (
    "DRAFT, text tower of ViT-L/14",
    "DRAFT, RoBERTa",
    "DRAFT, RoBERTa without dropout",
    "DRAFT, RoBERTa without dropout, compiled",
)


def peak_flops() -> float:
    """Multiplications and additions a second of a bf16 matrix product."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 8192 if device == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait()
    began = time.perf_counter()
    for _ in range(20):
        a @ b
    wait()
    return 20 * 2 * size**3 / (time.perf_counter() - began)


def wait() -> None:
    """Until the device is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def new_model(row: Row, folder: Path) -> Any:
    """A `Clip` with random weights. RoBERTa's has the released sizes, but a tokenizer of few words: ids are drawn."""
    from dialog_gen.clip.close.decoder import word_tokenizer
    from dialog_gen.clip.loader import new_clip
    from dialog_train.data.synthetic import synthetic_words

    if row.model != ROBERTA:
        return new_clip(row.model, 0)
    import open_clip
    from transformers import RobertaConfig

    tower = folder / "roberta"
    sizes = {"max_position_embeddings": 514, "vocab_size": 50265, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    dropout = {"hidden_dropout_prob": row.dropout, "attention_probs_dropout_prob": row.dropout}
    RobertaConfig(**sizes, **dropout).save_pretrained(tower)
    word_tokenizer(synthetic_words()).save_pretrained(tower)
    config = open_clip.get_model_config(ROBERTA)
    config["text_cfg"] |= {"hf_model_name": str(tower), "hf_tokenizer_name": str(tower), "hf_model_pretrained": False}
    (folder / "roberta.json").write_text(json.dumps(config))
    return new_clip(str(folder / "roberta.json"), 0)


def write_training_set(folder: Path, rows: int, width: int, tokenizer: Any) -> tuple[Path, float]:
    """Rows of random vectors and token ids, as `build_training_set` writes them; and the mean real tokens of a row."""
    import pyarrow as pa

    from dialog_gen.clip.text.tokens import TextEncoder
    from dialog_train.data.checked_rows import rows_writer
    from dialog_train.data.row_files import id_lists, rows_schema

    rng = np.random.default_rng(0)

    def texts(tokens: tuple[int, int, int]) -> tuple[Any, int]:
        mean, spread, most = tokens
        lengths = np.clip(np.rint(rng.normal(mean, spread, rows)), 5, most).astype(np.int64)
        ids = rng.integers(320, 40000, lengths.sum(), dtype=np.int32)
        ends = np.cumsum(lengths)
        ids[ends - 1] = END
        ids[ends - lengths] = START
        return id_lists(ids, ends), int(lengths.sum())

    (captions, some), (dialogues, more) = texts(CAPTION_TOKENS), texts(DIALOGUE_TOKENS)
    vectors = rng.standard_normal((rows, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    one_each = pa.array(np.arange(rows + 1, dtype=np.int32))
    no = pa.array(np.zeros(rows, bool))
    vector_type = pa.list_(pa.float16(), width)
    schema = rows_schema(pa.field("vector", vector_type, nullable=False))
    columns = [
        pa.array([f"{number:09d}" for number in range(rows)]),
        pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), type=vector_type),
        captions,
        no,
        pa.ListArray.from_arrays(one_each, dialogues),
        pa.ListArray.from_arrays(one_each, no),
        no,
    ]
    (folder / "rows").mkdir(parents=True)
    table = pa.record_batch(columns, schema=schema)
    with rows_writer(folder / "rows" / "00000.arrow", schema, "synthetic") as writer:
        for start in range(0, rows, 2048):
            writer.write_batch(table.slice(start, 2048))
    config = {"kind": "training set", "width": width, "crops": 0, "dialogue_format": "question_answer"}
    config["tokenizer"] = TextEncoder(tokenizer).config
    summary = {"rows": rows, "pairs": rows, "dropped": {}, "truncated": {}, "shards": [["00000", rows]]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({"fingerprint": "", **summary}))
    return folder, (some + more) / rows


def text_flops(model: Any, tokens: float) -> float:
    """Of a pair's real tokens, forward and backward: six for each weight of the transformer (arXiv 2001.08361)."""
    tower = getattr(model, "text", model).transformer
    weights = sum(p.numel() for n, p in tower.named_parameters() if p.ndim == 2 and "embeddings" not in n)
    return 6.0 * weights * tokens


def plain(row: Row, work: Path) -> dict[str, float]:
    """The loop that one writes with open_clip: 77 tokens a text, bf16 autocast, cached image vectors."""
    import torch

    from dialog_train.data.training_set import TrainingSet, epoch_batches
    from dialog_train.losses import draft_loss
    from dialog_train.systems.draft import DraftLossSettings

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = new_model(row, work)
    model = clip.model.train().to(device)
    model.lock_image_tower()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    width = model.text_projection.shape[1]
    folder, tokens = write_training_set(work / "rows", 4 * row.batch_size, width, clip.tokenizer)
    rows = TrainingSet(folder)
    settings = DraftLossSettings(mmd_weight=row.mmd_weight).model_dump()
    chosen = epoch_batches(len(rows), row.batch_size, 0, 0)
    ends: list[float] = []
    with Profile() as profile:
        for step in range(steps_of(row)):
            batch = rows.batch(chosen[step % len(chosen)], 0, concatenate=False, full_length=True)
            batch = batch.to(torch.device(device))
            with torch.autocast(device, torch.bfloat16):
                captions = model.encode_text(batch.captions.tokens.long(), normalize=True)
                dialogues = model.encode_text(batch.dialogues.tokens.long(), normalize=True)
            losses = draft_loss(
                batch.image_vectors, captions.float(), dialogues.float(), model.logit_scale.exp(), **settings
            )
            loss = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            ends.append(time.perf_counter())
            profile.step(step)
    return figures(row, ends, text_flops(model, tokens), profile)


def draft(row: Row, work: Path) -> dict[str, float]:
    """`dialog_train.loop.fit` with DRAFT's recipe."""
    import torch

    from dialog_train.data.training_set import TrainingSet
    from dialog_train.loop import fit
    from dialog_train.systems.draft import DraftRecipe, draft_objective
    from dialog_train.text_tuning import PairBatches, TextTuning

    clip = new_model(row, work)
    width = clip.config["embed_dim"]
    folder, tokens = write_training_set(work / "rows", 4 * row.batch_size, width, clip.tokenizer)
    cuda = torch.cuda.is_available()
    recipe = DraftRecipe.model_validate(
        {
            "model": row.model,
            "out": work / "out",
            "data": {"dialogues": "", "work": ""},
            "loss": {"mmd_weight": row.mmd_weight},
            "optim": {
                "lr": 1e-5,
                "batch_size": row.batch_size,
                "mini_batch_size": row.mini_batch_size,
                "max_steps": steps_of(row),
                "precision": "bf16" if cuda else "no",
                "compile": row.compile,
            },
            "log": {"tensorboard": False},
        }
    )
    ends: list[float] = []
    flops = text_flops(clip.model, tokens)
    system = TextTuning(clip, draft_objective(recipe.loss), recipe.optim)
    data = PairBatches(recipe, TrainingSet(folder), full_length=system.sees_padding)
    with Profile() as profile:

        def on_step(step: int, values: Any) -> None:
            # Waiting in each step would measure something else than a training: only where the clock is read.
            if step - 1 in profile.marks(steps_of(row)):
                wait()
            ends.append(time.perf_counter())
            profile.step(step - 1)

        fit(recipe, system, data, on_step=on_step)
    return figures(row, ends, flops, profile)


def shipped(row: Row, work: Path) -> dict[str, float]:
    """A shipped recipe, for a few steps."""
    from dialog_train.api import read_recipe
    from dialog_train.dry_run import dry_run

    del work
    stage = dry_run(read_recipe(row.kind), steps=5, batch_size=row.batch_size)[0]
    return {"pairs_per_s": stage.pairs_per_s, "peak_gib": stage.peak_bytes / 2**30}


class Profile:
    """Profiles the last steps, on a GPU: the time that its kernels take in all, and what the longest are."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda.is_available()
        self._profiler: Any = None
        self._began = self.seconds = self.busy = 0.0
        self.longest: list[tuple[str, float]] = []

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._profiler is not None:
            self._stop()

    def marks(self, steps: int) -> tuple[int, ...]:
        """The steps after which the clock is read: after warming up, before profiling, and at the end."""
        return WARM_STEPS - 1, steps - PROFILED_STEPS - 1, steps - 1

    def step(self, number: int) -> None:
        """To be called after each step, counted from 0."""
        if not self._cuda or number != STEPS - PROFILED_STEPS - 1:
            return
        from torch.profiler import ProfilerActivity, profile

        wait()
        self._profiler = profile(activities=[ProfilerActivity.CUDA])
        self._profiler.__enter__()
        self._began = time.perf_counter()

    def _stop(self) -> None:
        wait()
        self.seconds = time.perf_counter() - self._began
        self._profiler.__exit__(None, None, None)
        kernels = [(event.key, event.self_device_time_total / 1e6) for event in self._profiler.key_averages()]
        self.busy = sum(seconds for _, seconds in kernels) / self.seconds
        self.longest = sorted(kernels, key=lambda kernel: -kernel[1])[:8]


def steps_of(row: Row) -> int:
    import torch

    del row
    return STEPS if torch.cuda.is_available() else WARM_STEPS + PROFILED_STEPS + 2


def figures(row: Row, ends: list[float], flops: float, profile: Profile) -> dict[str, Any]:
    """Pairs/s between the marks, and what belongs to them."""
    import torch

    first, last, _ = profile.marks(len(ends))
    rate = (last - first) * row.batch_size / (ends[last] - ends[first])
    cuda = torch.cuda.is_available()
    return {
        "pairs_per_s": rate,
        "flops": rate * flops,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        "busy": profile.busy,
        "kernels": [(name[:100], seconds / PROFILED_STEPS * 1e3) for name, seconds in profile.longest],
    }


KINDS: dict[str, Callable[[Row, Path], dict[str, Any]]] = {"plain": plain, "draft": draft}


def measured(row: Row) -> dict[str, Any]:
    """What the process of a row does."""
    with tempfile.TemporaryDirectory(prefix="gpu-training-", dir=roomy()) as folder:
        return KINDS.get(row.kind, shipped)(row, Path(folder))


def roomy() -> Path | None:
    """A folder in memory if it has room."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 8 << 30 else None


def main() -> int:
    """Measures all rows and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small batches, on a CPU")
    parser.add_argument("--more", action="store_true", help="also RoBERTa's text tower, and compiled layers")
    parser.add_argument("--seconds", type=float, default=230, help="no row begins after this time; not with --tiny")
    parser.add_argument("--only", help="measure the rows whose name contains this text")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print("FIGURES " + json.dumps(measured(Row(**json.loads(given.row)))))
        return 0
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    began, peak = time.monotonic(), peak_flops()
    print(f"{card}, torch {torch.__version__}, {peak / 1e12:.0f} TFLOP/s in bf16", flush=True)
    print(f"{'':<40} {'pairs/s':>9} {'of peak':>8} {'busy':>6} {'GiB':>6}", flush=True)
    found: dict[str, Any] = {}
    missing: list[str] = []
    rows = [row for row in (*ROWS, *(MORE if given.more else ())) if not given.only or given.only in row.name]
    if given.tiny:
        rows = [replace(row, batch_size=16, mini_batch_size=row.mini_batch_size and 8) for row in rows]
    for row in rows:
        if given.tiny and row.name in HEAVY:
            continue
        if not given.tiny and time.monotonic() - began > given.seconds:
            print(f"{row.name:<40} not measured: the time is over", flush=True)
            missing.append(row.name)
            continue
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--row", json.dumps(asdict(row))],
            capture_output=True, text=True, check=False, env=os.environ,
        )  # fmt: skip
        if done.returncode or "FIGURES " not in done.stdout:
            print(f"{row.name:<40} FAILED (exit code {done.returncode})\n{done.stderr[-1500:]}", flush=True)
            missing.append(row.name)
            continue
        of = found[row.name] = json.loads(done.stdout.rpartition("FIGURES ")[2])
        share = f"{of['flops'] / peak:8.1%}" if "flops" in of else f"{'':>8}"
        busy = f"{of['busy']:6.0%}" if of.get("busy") else f"{'':>6}"
        print(f"{row.name:<40} {of['pairs_per_s']:9,.0f} {share} {busy} {of['peak_gib']:6.1f}", flush=True)
    for name, of in found.items():
        if of.get("kernels"):
            print(f"\n{name}: longest kernels, ms a step")
            print(*(f"  {ms:8.3f}  {kernel}" for kernel, ms in of["kernels"]), sep="\n")
    ratios(found)
    if given.json:
        given.json.write_text(json.dumps({"card": card, "torch": torch.__version__, "peak": peak, "rows": found}))
    print(f"{time.monotonic() - began:.0f} s" + (f"; FAILED: not measured: {missing}" if missing else ""), flush=True)
    return int(bool(missing))


def ratios(found: dict[str, Any]) -> None:
    """Prints DRAFT over the plain loop, and the MMD's share of a step."""
    rate = {name: of["pairs_per_s"] for name, of in found.items()}
    for name in rate:
        if (compiled := f"{name}, compiled") in rate:
            print(f"{name}: compiled over not: {rate[compiled] / rate[name]:.2f}")
    if {"DRAFT", "plain open_clip loop"} <= set(rate):
        print(f"\nDRAFT over the plain loop: {rate['DRAFT'] / rate['plain open_clip loop']:.2f}")
    for name, without in itertools.product(rate, rate):
        if without == f"{name}, without MMD" or without == f"{name} without MMD":
            print(f"{name}: MMD takes {1 - rate[name] / rate[without]:.1%} of a step")


if __name__ == "__main__":
    sys.exit(main())
