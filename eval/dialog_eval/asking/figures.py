"""The figures of VQA from the accuracy of each question: overall, by type of answer, and by type of question."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dialog_eval.data.vqa import VqaItem
from dialog_eval.metrics.intervals import paired_bootstrap
from dialog_eval.results import Metric, unused_name

_ANSWER_TYPES = ("yes/no", "number", "other")
_MOST_QUESTION_TYPES = 15
ALWAYS_YES = 'always "yes"'


@dataclass(frozen=True)
class VqaFigures:
    """Computes the measures of a split."""

    items: Sequence[VqaItem]

    def by_answer(self, accuracy: Sequence[float]) -> list[Metric]:
        """Accuracy (questions,) over all questions and for each type of answer."""
        return [self._metric("accuracy", accuracy, range(len(self.items)))] + [
            self._metric(name, accuracy, places) for name, places in self.answer_types.items()
        ]

    def by_question(self, accuracy: Sequence[float]) -> list[Metric]:
        """Accuracy for each type of question, the most frequent first; all beyond the first 15 are one."""
        return [self._metric(name, accuracy, places) for name, places in self._question_types.items()]

    def notes(self, metrics: Sequence[Metric], without_image: Mapping[str, Sequence[Metric]]) -> list[str]:
        """One note on the figures that are not shown to be above those of a way to answer without the image.

        `metrics`: as `by_answer` returns them; `without_image`: name of such a way -> its metrics. A figure is above if
        the 95 % interval of the paired difference is. Always "yes" is compared for yes/no questions only.
        """
        told: list[str] = []
        for place, metric in enumerate(metrics):
            equal, others = list[str](), list[str]()
            for name, of_way in without_image.items():
                other = of_way[place]
                if name == ALWAYS_YES and metric.name != "accuracy, yes/no":
                    continue
                if metric.values == other.values:
                    equal.append(name)
                elif paired_bootstrap(metric.values, other.values, groups=metric.groups)[1] <= 0:
                    others.append(name)
            if equal:
                told.append(f"{metric.name} equals {', '.join(equal)}")
            elif others:
                told.append(f"{metric.name} is not shown to be above {', '.join(others)}")
        return [f"without the image: {'; '.join(told)}"] if told else []

    @cached_property
    def answer_types(self) -> dict[str, list[int]]:
        """Name of the metric -> indices of its questions."""
        places: dict[str, list[int]] = {name: [] for name in _ANSWER_TYPES}
        for place, item in enumerate(self.items):
            places.setdefault(item.answer_type, []).append(place)
        return {f"accuracy, {name}": some for name, some in places.items() if some}

    @cached_property
    def _question_types(self) -> dict[str, list[int]]:
        counts = Counter(item.question_type for item in self.items)
        frequent = sorted(counts, key=lambda name: (-counts[name], name))[:_MOST_QUESTION_TYPES]
        places: dict[str, list[int]] = {name: [] for name in frequent}
        others = unused_name("all others", frequent)
        for place, item in enumerate(self.items):
            name = item.question_type
            places.setdefault(name if name in frequent else others, []).append(place)
        return {f"accuracy, {name}": some for name, some in places.items()}

    def _metric(self, name: str, accuracy: Sequence[float], places: Sequence[int]) -> Metric:
        return Metric.of(name, [accuracy[i] for i in places], [self.items[i].image_id for i in places])
