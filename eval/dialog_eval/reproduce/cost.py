"""What a plan costs, said before anything starts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dialog_eval.reproduce.run import Records
from dialog_eval.reproduce.steps import Step
from dialog_gen.core.plural import count_of

_KINDS = {
    "download": "downloads",
    "generate": "generations of dialogues",
    "train": "trainings",
    "measure": "evaluations",
    "other": "others",
}


class Cost(NamedTuple):
    """What the steps of one kind cost, without those that are done."""

    name: str
    steps: int
    done: int
    minutes: float
    gpu_hours: float
    images: int
    unknown: int
    """Number of steps whose cost the plan does not say."""


def costs(steps: Sequence[Step], records: Records) -> list[Cost]:
    """The costs by kind, and last their sum. Minutes are scaled by how long the steps of that kind that are done took
    here: how fast a machine downloads says nothing about how fast it trains.
    """
    done = records.done(steps)
    found: list[Cost] = []
    for kind, name in _KINDS.items():
        own = [step for step in steps if step.kind == kind]
        left = [step.cost for step in own if step.name not in done]
        if own:
            found.append(
                Cost(
                    name=name,
                    steps=len(own),
                    done=len(own) - len(left),
                    minutes=_rate(own, done) * sum(cost.minutes for cost in left),
                    gpu_hours=sum(cost.gpu_hours for cost in left),
                    images=sum(cost.images for cost in left),
                    unknown=sum(not (cost.minutes or cost.gpu_hours or cost.images) for cost in left),
                )
            )
    total = [sum(cost[place] for cost in found) for place in range(1, 7)]  # type: ignore[arg-type, misc]
    return [*found, Cost("all", int(total[0]), int(total[1]), total[2], total[3], int(total[4]), int(total[5]))]


def _rate(steps: Sequence[Step], done: Mapping[str, float]) -> float:
    """How much longer steps take here than where they were measured; 1 if none is done."""
    known = [(done[step.name], step.cost.minutes) for step in steps if step.name in done]
    expected = 60 * sum(minutes for _, minutes in known)
    return sum(seconds for seconds, minutes in known if minutes) / expected if expected else 1.0


def cost_line(total: Cost) -> str:
    """The sum in one line, such as "41 steps, 3 done; about 35 minutes; 0 images to download"."""
    parts = [f"{count_of(total.steps, 'step')}, {total.done} done"]
    if total.minutes:
        hours = total.minutes / 60
        parts.append(
            f"about {hours:.1f} hours on one core" if hours >= 2 else f"about {total.minutes:.0f} min on one core"
        )
    if total.gpu_hours:
        parts.append(f"about {total.gpu_hours:,.0f} GPU hours")
    if total.images:
        parts.append(f"{count_of(total.images, 'image', grouped=True)} to download")
    if total.unknown:
        parts.append(f"{count_of(total.unknown, 'step')} whose cost the plan does not say")
    return "; ".join(parts)
