"""What bound a run, by hand-made loads, and when one more process should feed an engine."""

import random
import time
from dataclasses import replace

import pytest

from dialog_gen.engines.load import EngineLoad, StageClock, StepTimes
from dialog_gen.executors.base import EngineStarted, LoadMeasured
from dialog_gen.executors.load import WorkerLoad, requests_of, wants_another_frontend
from dialog_gen.generation.bounds import NOTHING, LoadTally, bound_by, bounds_text, cost_per_million
from dialog_gen.generation.summary import RunResult

IDLE = WorkerLoad(
    seconds=100,
    images=500,
    output_tokens=60_000,
    decode_s=20,
    write_s=5,
    cpu_s=40,
    requests_s=3000,
    capacity_s=25_600,
    engine=EngineLoad(render_s=30, waiting_s=2500, steps=1000, full_steps=10, kv_cache_use=250.0),
)
FULL = EngineLoad(steps=1000, full_steps=970)


def steps(seconds_a_prompt_token: float, count: int = 200) -> StepTimes:
    """Steps of 10 ms, plus 0.1 ms for each output token, plus what prompt tokens take."""
    draw, sums = random.Random(0), StepTimes()
    for _ in range(count):
        prompt, output = draw.choice([0, 0, 600, 1200]), draw.randrange(100, 200)
        sums += StepTimes.of(0.01 + 1e-4 * output + seconds_a_prompt_token * prompt, prompt, output)
    return sums


def test_the_clock_of_a_stage() -> None:
    clock = StageClock()
    with clock:
        time.sleep(0.05)
        with clock:
            time.sleep(0.05)
        assert 0.1 <= clock.busy_s < clock.work_s
    busy_s, work_s = clock.busy_s, clock.work_s
    time.sleep(0.05)
    assert (clock.busy_s, clock.work_s) == (busy_s, work_s)
    assert work_s - busy_s == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("cost", [0.0, 2e-5, 5e-4])
def test_the_share_of_prompts_in_mixed_steps(cost: float) -> None:
    sums = steps(cost)
    assert sums.prefill_share() == pytest.approx(cost * sums.p / sums.s, abs=1e-6)


def test_the_share_of_prompts_is_unknown_after_few_steps_and_0_without_prompts() -> None:
    assert steps(1e-4, count=19).prefill_share() is None
    alike = sum([StepTimes.of(0.02, 0, 100)] * 50, StepTimes())
    assert alike.prefill_share() == 0


@pytest.mark.parametrize(
    ("load", "name", "reason"),
    [
        (replace(IDLE, engine=replace(FULL, times=steps(5e-4))), "prefill", "engine full in 97% of its steps, pre"),
        (replace(IDLE, engine=replace(FULL, times=steps(1e-6))), "decode steps", "engine full in 97% of its steps"),
        (replace(IDLE, engine=FULL), "engine", "engine full in 97% of its steps"),
        # A full engine is the bound, whatever the worker does.
        (replace(IDLE, decode_s=99, engine=replace(FULL, times=steps(0))), "decode steps", "engine full"),
        (replace(IDLE, decode_s=95), "reading images", "busy 95%"),
        (replace(IDLE, write_s=93, decode_s=92), "writing rows", "busy 93%"),
        (replace(IDLE, engine=replace(IDLE.engine, render_s=97)), "writing prompts", "busy 97%"),
        (replace(IDLE, cpu_s=140), "CPU of the worker", "140% of a core"),
        (IDLE, NOTHING, "the busiest part, writing prompts, worked 30% of the time"),
        # An engine that does not report its steps.
        (replace(IDLE, engine=EngineLoad(), requests_s=25_000), "engine", "250 requests in it all the time"),
        (replace(IDLE, engine=EngineLoad(), requests_s=9000, decode_s=95), "reading images", "busy 95%"),
        (WorkerLoad(), NOTHING, ""),
    ],
)
def test_what_bound_it(load: WorkerLoad, name: str, reason: str) -> None:
    found = bound_by(load)
    assert found[0] == name
    assert found[1].startswith(reason)


def test_the_figures_of_two_engines_with_two_workers_each() -> None:
    """Events in parts: two shards of each worker. Rates are those of workers that run at the same time."""
    result = RunResult()
    for engine in (0, 1):
        for worker in ("a", "b"):
            result.add(
                EngineStarted(name="e", version="1", deterministic=True, seconds=9 + engine, engine=engine, gpus=2)
            )
            for _ in range(2):
                load = replace(
                    IDLE,
                    seconds=50,
                    images=100 * (engine + 1),
                    output_tokens=2000,
                    engine=EngineLoad(
                        render_s=48,
                        steps=100,
                        kv_cache_use=80.0,
                        prompt_tokens=1000,
                        cached_tokens=300 * engine,
                        preemptions=engine,
                    ),
                )
                result.add(LoadMeasured(load=load, engine=engine, worker=worker))
    summary = result.loads.summary()
    first, second = summary["engines"]
    assert (summary["images"], first["images"], second["images"]) == (1200, 400, 800)
    assert (summary["seconds"], first["seconds"]) == (100, 100)
    assert (summary["images_per_second"], first["images_per_second"], second["images_per_second"]) == (12, 4, 8)
    assert first["output_tokens_per_second"] == 80
    assert (summary["workers"], first["workers"]) == (4, 2)
    assert (first["bound_by"], first["busy"]["writing prompts"]) == ("writing prompts", 0.96)
    assert (first["requests_in_flight"], first["kv_cache_use"]) == (120, 0.8)
    assert [e["prefix_hits"] for e in (first, second, summary)] == [0, 0.3, 0.15]
    assert summary["preemptions"] == 4
    assert result.loads.gpus == 4
    assert bounds_text(summary, gpu_hours=2.5, cost=12.5) == (
        "  bound by: writing prompts (busy 96%); busy: reading images 40%, writing prompts 96%, writing rows "
        "10%, CPU 80%\n"
        "  KV cache 80% in use, prefix hits 15%; 4 preemptions; 2.50 GPU hours, 12.5 for a million images"
    )


def test_the_price_of_a_million_images() -> None:
    # 8 GPUs for half an hour at 2.50 an hour gave 400,000 images: 10 for 0.4 million.
    assert cost_per_million(4, 2.5, 400_000) == 25
    assert cost_per_million(0, 2.5, 400_000) is None
    assert cost_per_million(4, 2.5, 0) is None


def test_loads_without_events_give_figures() -> None:
    assert LoadTally().summary()["bound_by"] == NOTHING


SATURATED = replace(IDLE, engine=replace(IDLE.engine, render_s=95))


@pytest.mark.parametrize(
    ("loads", "cores", "wanted"),
    [
        ([SATURATED], 4, True),
        ([SATURATED], 1, False),
        ([IDLE], 4, False),
        ([SATURATED, IDLE], 4, False),
        ([SATURATED, SATURATED], 4, True),
        ([SATURATED, SATURATED], 2, False),
        ([replace(IDLE, cpu_s=96)], 4, True),
        ([replace(SATURATED, engine=replace(SATURATED.engine, full_steps=600))], 4, False),
        ([replace(SATURATED, engine=EngineLoad(render_s=95), requests_s=25_000)], 4, False),
        ([replace(SATURATED, engine=EngineLoad(render_s=95), requests_s=5000)], 4, True),
        ([replace(SATURATED, seconds=9, engine=replace(IDLE.engine, render_s=9))], 4, False),
        ([], 4, False),
    ],
)
def test_another_frontend_is_wanted(loads: list[WorkerLoad], cores: int, wanted: bool) -> None:
    assert wants_another_frontend(loads, cores) is wanted


def test_shares_of_requests_fill_the_engine() -> None:
    assert [requests_of(256, frontends) for frontends in (1, 2, 3)] == [256, 128, 86]
