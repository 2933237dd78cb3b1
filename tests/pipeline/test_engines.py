"""The two engines on the embedded models. vLLM starts slowly: one engine a model serves the whole file."""

import asyncio
import hashlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import dialog_gen
from dialog_gen.engines.base import Answer, EngineDiedError, EngineOptions, RefusedRequestError, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.engines.transformers.engine import SeededSampling
from dialog_gen.generation.dialogue import Dialogue, DialogueGenerator
from dialog_gen.models.registry import GeneratorModel, resolve_model
from dialog_gen.protocols.protocol import Conversation, Sampling, conversation, load_protocol
from dialog_gen.shapes.render import render, render_png
from dialog_gen.shapes.scenes import draw_scene

IMAGES = 48
GREEDY = Sampling(temperature=0, max_tokens=128)
SAMPLED = Sampling(temperature=1, top_p=0.95, max_tokens=128)
PATIENCE_S = 120
BOTH = pytest.mark.parametrize("name", ["vllm", "transformers"])


@dataclass
class Running:
    """A started engine, the event loop it lives in, and the processes that came with it."""

    engine: Any
    loop: asyncio.AbstractEventLoop
    model: GeneratorModel
    generator: DialogueGenerator
    processes: list[psutil.Process]

    def answers(self, *requests: Request, sampling: Sampling = GREEDY) -> list[Any]:
        """An answer or an error for each request; all are asked at once."""
        self.engine._sampling = sampling

        async def ask() -> list[Any]:
            return await asyncio.gather(*(self.engine.answer(r) for r in requests), return_exceptions=True)

        return self.run(ask())

    def dialogues(self, count: int) -> list[Dialogue]:
        self.engine._sampling, self.engine._render = GREEDY, self.model.render

        async def generate() -> list[Dialogue]:
            shown = ((scene(i)[:1], scene(i)[1]) for i in range(count))
            return await asyncio.gather(*(self.generator.generate(self.engine, *each) for each in shown))

        try:
            return self.run(generate())
        finally:
            self.engine._render = verbatim

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    def close(self) -> None:
        self.run(self.engine.close())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def request(self, image: int = 0, *, seed: int = 0, prompt: str | None = None) -> Request:
        pixels, sha256 = scene(image)
        messages = conversation(self.prompt if prompt is None else prompt)
        return Request(messages=messages, images=(pixels,), image_sha256=sha256, seed=seed)

    @property
    def prompt(self) -> str:
        return self.model.render(conversation(self.generator.protocol.turns[0].user))


def verbatim(messages: Conversation, images: int = 1) -> str:
    """In place of a model's chat template: the prompt is what the user says."""
    (message,) = messages
    return message.text


def scene(index: int) -> tuple[Image.Image, str]:
    drawn = draw_scene("test", 11, index)
    return render(drawn), hashlib.sha256(render_png(drawn)).hexdigest()


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(forked_vllm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: dict[tuple[str, ...], Running] = {}

    def get(name: str, model: str, *apart: str) -> Running:
        """The engine that all tests share, or one `apart`."""
        if (name, model, *apart) not in started:
            started[name, model, *apart] = start_new(name, model)
        return started[name, model, *apart]

    def start_new(name: str, model: str) -> Running:
        resolved = resolve_model(model)
        protocol = load_protocol(resolved.default_protocol)
        generator = DialogueGenerator(
            protocol=protocol, chat_template=resolved.chat_template, sampling=GREEDY, run_seed=0
        )
        before = psutil.Process().children(recursive=True)
        log = tmp_path_factory.mktemp("engine") / "engine.log"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own
            options = EngineOptions(logprobs=True, reuse_images=True)
            engine = EngineSpec(name=name, model=resolved, sampling=GREEDY, options=options).start(log)
        spawned = [p for p in psutil.Process().children(recursive=True) if p not in before]
        engine._render = verbatim
        # Python's own, which stays until this process ends.
        processes = [p for p in spawned if not any("resource_tracker" in word for word in p.cmdline())]
        return Running(engine, asyncio.new_event_loop(), resolved, generator, processes)

    yield get
    for running in started.values():
        if not running.loop.is_closed():
            running.close()
    assert alive([p for running in started.values() for p in running.processes]) == []


def alive(processes: list[psutil.Process], patience_s: float = 30) -> list[psutil.Process]:
    """Those that do not end by themselves. In a container whose first process reaps nothing, the dead are zombies."""
    deadline = time.monotonic() + patience_s
    while left := [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.1)
    return []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shapes-llava", "shapes-blip2"])
def test_greedy_dialogues_are_the_same_on_both_engines(start: Start, model: str) -> None:
    """Decoded in float32: token by token, all turns."""
    by_vllm = start("vllm", model).dialogues(IMAGES)
    by_transformers = start("transformers", model).dialogues(IMAGES)
    assert [replace(d, answer_logprobs=()) for d in by_vllm] == [
        replace(d, answer_logprobs=()) for d in by_transformers
    ]
    for one, other in zip(by_vllm, by_transformers, strict=True):
        assert one.answer_logprobs == pytest.approx(other.answer_logprobs, abs=1e-3)
        assert len(one.answer_logprobs) == len(one.pairs)
    assert start("vllm", model).engine.deterministic
    # They are about the images, and nearly all of use.
    assert len({dialogue.raw for dialogue in by_vllm}) > IMAGES / 2
    assert sum(dialogue.reason is None for dialogue in by_vllm) > 0.9 * IMAGES


@pytest.mark.slow
@BOTH
def test_log_probabilities_are_those_of_a_forward_pass(start: Start, name: str) -> None:
    """Of the model itself, not of what temperature and top_p left of it: one pass over prompt and answer."""
    running = start(name, "shapes-llava")
    hot = Sampling(temperature=1.5, top_p=0.9, max_tokens=128)
    folder = resolve_model("shapes-llava").folder
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    processor: Any = AutoProcessor.from_pretrained(folder)
    for answer, index in zip(running.answers(*map(running.request, range(8)), sampling=hot), range(8), strict=True):
        text = running.prompt + answer.text + processor.tokenizer.eos_token
        inputs = processor(images=[scene(index)[0]], text=[text], return_tensors="pt")
        with torch.inference_mode():
            log_probs = model(**inputs).logits[0].log_softmax(dim=-1)
        ids = inputs["input_ids"][0]
        expected = log_probs[:-1].gather(1, ids[1:, None])[:, 0][-answer.output_tokens :]
        assert [log_prob for _, log_prob in answer.tokens] == pytest.approx(expected.tolist(), abs=1e-3)
        assert "".join(token for token, _ in answer.tokens[:-1]) == answer.text


@pytest.mark.slow
@BOTH
def test_a_seed_fixes_an_answer_whoever_shares_the_engine(start: Start, name: str) -> None:
    running = start(name, "shapes-llava")
    requests = [running.request(i % 4, seed=[1, 2, 2**61 + 3][i // 4]) for i in range(12)]
    alone = [running.answers(request, sampling=SAMPLED)[0] for request in requests]
    assert all(isinstance(answer, Answer) and answer.saw_image for answer in alone)
    assert running.answers(*requests, sampling=SAMPLED) == alone
    neighbours = [running.request(i, seed=100 + i) for i in range(6, 40)]
    assert running.answers(*neighbours, *reversed(requests), sampling=SAMPLED)[: -len(requests) - 1 : -1] == alone
    # Three seeds say more about four images than one does.
    assert len({answer.text for answer in alone}) > 6


@pytest.mark.slow
def test_pixels_that_the_core_has_lost_are_sent_again(start: Start) -> None:
    """Then vLLM ends requests with "error", without a token: that is no answer."""
    running = start("vllm", "shapes-llava")
    requests = [running.request(i % 4, seed=i) for i in range(24)]
    answers = running.answers(*requests)
    running.run(running.engine._engine.engine_core.reset_mm_cache_async())
    assert running.answers(*requests) == answers


@pytest.mark.slow
@BOTH
def test_a_request_may_bring_its_own_sampling(start: Start, name: str) -> None:
    """As gates do: the answers are those of an engine that was started with it, and others keep the engine's."""
    running = start(name, "shapes-llava")
    requests = [running.request(i % 6, seed=i) for i in range(24)]
    samplings = [SAMPLED, None, SAMPLED.model_copy(update={"max_tokens": 5})]
    expected = {s: running.answers(*requests, sampling=s or GREEDY) for s in samplings}
    brought = [replace(request, sampling=s) for request in requests for s in samplings]
    found = running.answers(*brought)
    assert [found[i :: len(samplings)] for i in range(len(samplings))] == [expected[s] for s in samplings]
    assert {answer.output_tokens for answer in found[2::3]} == {5}
    assert expected[SAMPLED] != expected[None]


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize(
    ("model", "prompt"),
    [
        ("shapes-llava", "no image"),
        ("shapes-llava", "empty"),
        ("shapes-llava", "too long"),
        ("shapes-blip2", "too long"),
    ],
)
def test_a_bad_prompt_is_refused_and_takes_no_other_along(start: Start, name: str, model: str, prompt: str) -> None:
    running = start(name, model)
    bad = {
        "no image": running.prompt.replace("<image>", ""),
        "empty": "",
        "too long": running.prompt + " what color" * 300,
    }[prompt]
    good = [running.request(i) for i in range(4)]
    answers = running.answers(*good)
    assert all(isinstance(answer, Answer) and answer.saw_image for answer in answers)
    refused = running.answers(*good[:2], running.request(7, prompt=bad), *good[2:])
    error = refused.pop(2)
    assert isinstance(error, RefusedRequestError)
    assert error.reason == "engine_refused"
    assert error.detail
    assert refused == answers
    assert running.answers(*good) == answers


@pytest.mark.slow
@BOTH
def test_two_places_for_one_image_do_not_hang(start: Start, name: str) -> None:
    """No template makes such a prompt. transformers ends it with a StopIteration, which no future can hold."""
    running = start(name, "shapes-llava")
    (answer,) = running.answers(running.request(prompt=running.prompt.replace("<image>", "<image> <image>")))
    assert isinstance(answer, Answer | RefusedRequestError)


@pytest.mark.slow
@BOTH
def test_an_answer_ends_at_the_limit_of_tokens(start: Start, name: str) -> None:
    running = start(name, "shapes-llava")
    (whole,) = running.answers(running.request())
    (cut,) = running.answers(running.request(), sampling=GREEDY.model_copy(update={"max_tokens": 5}))
    assert (whole.finish_reason, cut.finish_reason, cut.output_tokens) == ("stop", "length", 5)
    assert 0 < len(cut.text) < len(whole.text)
    assert whole.text.startswith(cut.text)


@pytest.mark.slow
def test_transformers_stops_in_the_middle_of_an_answer(start: Start) -> None:
    """Its thread would keep the process from ending after a Ctrl-C."""
    running = start("transformers", "shapes-llava", "endless")
    running.engine._stop_ids = {running.engine._image_token_id}
    running.engine._sampling = Sampling(temperature=0, max_tokens=8192)

    async def ask_and_close() -> None:
        asking = asyncio.create_task(running.engine.answer(running.request()))
        await asyncio.sleep(0.5)
        assert not asking.done()
        await running.engine.close()
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking

    running.run(ask_and_close())
    began = time.monotonic()
    running.engine._thread.shutdown(wait=True)
    assert time.monotonic() - began < 20  # 8192 tokens take longer


@pytest.mark.slow
def test_an_engine_that_is_killed_says_so(start: Start) -> None:
    running = start("vllm", "shapes-blip2")
    (process,) = [p for p in running.processes if p.name().startswith("VLLM::")]

    async def ask_and_kill() -> list[Any]:
        process.suspend()  # nothing asked from here on can be answered
        asking = [asyncio.create_task(running.engine.answer(running.request(i, seed=i))) for i in range(8)]
        await asyncio.sleep(1)
        assert not any(task.done() for task in asking)
        process.kill()
        return await asyncio.gather(*asking, return_exceptions=True)

    assert {type(error) for error in running.run(ask_and_kill())} == {EngineDiedError}
    (later,) = running.answers(running.request())
    assert isinstance(later, EngineDiedError)
    running.close()
    assert alive(running.processes) == []


def nucleus(scores: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities after temperature and top-p: the smallest set of the likeliest tokens whose mass reaches top_p."""
    powers = np.exp(scores / sampling.temperature)
    probabilities = powers / powers.sum()
    kept = np.zeros(len(scores), bool)
    for token in sorted(range(len(scores)), key=lambda t: -probabilities[t]):
        kept[token] = True
        if probabilities[kept].sum() >= sampling.top_p:
            break
    return np.where(kept, probabilities, 0) / probabilities[kept].sum()


def sampled(sampling: Sampling, seeds: list[int], scores: np.ndarray, steps: int = 1) -> np.ndarray:
    """Tokens (seed, step), the same scores at every step."""
    processor = SeededSampling(sampling, seeds)
    batch = torch.tensor(scores, dtype=torch.float32).expand(len(seeds), -1)
    ids = torch.zeros((len(seeds), 1), dtype=torch.long)
    tokens = [processor(ids, batch.clone()).argmax(dim=-1).numpy() for _ in range(steps)]  # type: ignore[arg-type]
    return np.stack(tokens, axis=1)


def fits(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """Pearson's chi-square below its mean plus five standard deviations; what has no chance must not happen."""
    if counts[probabilities == 0].any():
        return False
    counts, expected = counts[probabilities > 0], probabilities[probabilities > 0] * counts.sum()
    assert expected.min() > 5
    freedom = len(expected) - 1
    return bool(((counts - expected) ** 2 / expected).sum() <= freedom + 5 * (2 * freedom) ** 0.5)


SCORES = np.array([1.5, 0.3, -0.4, 2.0, 0.0, -6.0, 1.0, 0.9, -1.2, 1.9])


@pytest.mark.parametrize(("temperature", "top_p"), [(1, 1), (0.7, 0.9), (1.5, 0.8), (2, 0.5), (0.3, 1e-6)])
def test_seeded_sampling_draws_from_the_nucleus(temperature: float, top_p: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p)
    scores = SCORES[SCORES > -2] if top_p == 1 else SCORES
    expected = nucleus(scores, sampling)
    assert (expected == 0).any() == (top_p < 1)
    # Seeds as they come: neighbours, and all over the range of `seed_of`.
    rng = np.random.default_rng(0)
    seeds = [*range(4000), *(int(seed) for seed in rng.integers(0, 2**62, 4000))]
    tokens = sampled(sampling, seeds, scores, steps=2)
    for column in tokens.T:
        assert fits(np.bincount(column, minlength=len(scores)), expected)
    if (expected > 0).sum() > 1:
        # The bound tells a wrong temperature by a tenth.
        wrong = nucleus(scores, sampling.model_copy(update={"temperature": temperature * 1.15}))
        assert not fits(np.bincount(tokens[:, 0], minlength=len(scores)), wrong)


def test_draws_of_a_seed_and_of_neighbouring_seeds_are_independent() -> None:
    """The second turn decodes with the next seed."""
    sampling = Sampling(temperature=1, top_p=1)
    scores = np.array([0.5, 0.0, 1.0])
    one = nucleus(scores, sampling)
    tokens = sampled(sampling, list(range(8000)), scores, steps=2)
    pairs_of_steps = tokens[:, 0] * 3 + tokens[:, 1]
    pairs_of_seeds = tokens[0::2, 0] * 3 + tokens[1::2, 0]
    for pairs in (pairs_of_steps, pairs_of_seeds):
        assert fits(np.bincount(pairs, minlength=9), np.outer(one, one).ravel())


def test_a_row_is_drawn_by_its_own_seed() -> None:
    sampling = Sampling(temperature=1, top_p=0.95)
    rng = np.random.default_rng(1)
    batch = torch.tensor(rng.normal(0, 2, (6, 50)), dtype=torch.float32)
    ids: Any = torch.zeros((6, 1), dtype=torch.long)
    seeds = [7, 8, 7, 2**61, 0, 9]
    together: Any = SeededSampling(sampling, seeds)
    both_steps = [together(ids, batch), together(ids, batch)]
    for row, seed in enumerate(seeds):
        alone: Any = SeededSampling(sampling, [seed])
        for step in both_steps:
            assert torch.equal(alone(ids[:1], batch[row : row + 1])[0], step[row])
    assert not torch.equal(both_steps[0], both_steps[1])


GUARDED = """
import multiprocessing, sys, time
from contextlib import suppress
from dialog_gen.engines.vllm.guard import Guard

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    other, child = (context.Process(target=time.sleep, args=(600,), daemon=True) for _ in range(2))
    other.start()
    with suppress(ValueError), Guard() as guard:
        child.start()
        print(other.pid, child.pid, guard._shell.pid, flush=True)
        ending = sys.stdin.readline().strip()
        if ending == "during":
            time.sleep(600)
        if ending == "error":
            raise ValueError
    if ending == "dismissed":
        guard.dismiss()
    print("left", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("ending", ["during", "after", "error", "dismissed"])
def test_what_an_engine_started_ends_with_its_process(tmp_path: Path, ending: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(GUARDED, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(Path(dialog_gen.__file__).parents[1])}
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process = psutil.Popen([sys.executable, str(script)], env=env, stdin=pipe, stdout=pipe, stderr=null, text=True)
    other, child, shell = (psutil.Process(int(pid)) for pid in process.stdout.readline().split())
    try:
        process.stdin.write(f"{ending}\n")
        process.stdin.flush()
        if ending == "during":
            time.sleep(0.5)
        else:
            assert process.stdout.readline() == "left\n"
        if ending == "error":
            assert alive([child, shell]) == []
        process.kill()
        # The other was there before; those that are dismissed are forgotten.
        remaining = [other, child] if ending == "dismissed" else [other]
        assert alive([p for p in (other, child, shell) if p not in remaining]) == []
        assert [p for p in remaining if p.is_running()] == remaining
    finally:
        for left in alive([process, other, child], 0):
            left.kill()
        process.communicate()
