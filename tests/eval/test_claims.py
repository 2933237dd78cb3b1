"""Intervals over images and seeds, Holm's correction, and the verdicts on claims."""

from pathlib import Path

import numpy as np
import pytest
from helpers.results import entry
from scipy.stats import ttest_1samp, ttest_ind, ttest_rel

from dialog_eval.metrics.intervals import paired_bootstrap
from dialog_eval.metrics.significance import difference, holm
from dialog_eval.reproduce.claims import Claim, ClaimTest, judge
from dialog_eval.reproduce.measured import Figure, Measured
from dialog_eval.reproduce.pages.study import mark_of
from dialog_eval.reproduce.plan import Cost
from dialog_eval.reproduce.steps import Step
from dialog_eval.results import Asked, Entry, Metric, Results


def test_over_items_it_is_students_test() -> None:
    """With one seed and items that are independent: scipy's t-test of the differences."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.6, 0.3, 50), rng.normal(0.5, 0.3, 50)
    found, reference = difference([a.tolist()], [b.tolist()]), ttest_1samp(a - b, 0)
    interval = reference.confidence_interval()
    assert (found.mean, found.p) == pytest.approx((np.mean(a - b), reference.pvalue))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    shifted = difference([a.tolist()], [b.tolist()], above=0.2)
    assert shifted.p == pytest.approx(ttest_1samp(a - b, 0.2).pvalue)


def test_over_seeds_of_two_sides_it_is_no_narrower_than_welchs_test() -> None:
    """With items of which none varies; Welch's is scipy's test of the seeds' means, whose variances may differ."""
    first, second = [0.50, 0.54, 0.61], [0.40, 0.41, 0.42, 0.45]
    found = difference([[mean] * 20 for mean in first], [[mean] * 20 for mean in second])
    reference = ttest_ind(first, second, equal_var=False)
    interval = reference.confidence_interval()
    assert found.seeds == 3
    assert reference.pvalue < found.p < 2 * reference.pvalue
    assert found.low < interval.low < interval.high < found.high
    one_side = difference([[mean] * 20 for mean in first], [[0.4] * 20], b_is_trained=False)
    assert one_side.p == pytest.approx(ttest_1samp(first, 0.4).pvalue)


def test_over_seeds_in_pairs_it_is_students_test() -> None:
    """With items of which none varies: scipy's test of the seeds' differences, here of starts that differ much."""
    first, second = [0.50, 0.64, 0.81], [0.40, 0.55, 0.70]
    found = difference([[mean] * 20 for mean in first], [[mean] * 20 for mean in second], paired=True)
    reference = ttest_rel(first, second)
    interval = reference.confidence_interval()
    assert (found.p, found.seeds) == (pytest.approx(reference.pvalue), 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    half = difference([[mean] * 20 for mean in first], [[mean] * 20 for mean in second], factor=0.5, paired=True)
    assert half.p == pytest.approx(ttest_1samp(np.subtract(first, np.multiply(0.5, second)), 0).pvalue)
    with pytest.raises(ValueError, match="3 and 2 seeds"):
        difference([[0.5] * 4] * 3, [[0.5] * 4] * 2, paired=True)


def test_the_interval_of_shares_ends_at_0_and_1() -> None:
    rows = [[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    found = difference(rows, None)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    assert difference(rows, [[0.0] * 4]).high > 1
    assert difference([[2.0, 9.0, 1.0], [20.0, 3.0, 1.0]], None).low < 0


def test_over_images_it_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(400), 3)
    hard = np.repeat(rng.random(400), 3)  # questions of one image are alike
    a, b = (rng.random(1200) < hard).astype(float), (rng.random(1200) < hard - 0.1).astype(float)
    found = difference([a.tolist()], [b.tolist()], groups.tolist())
    _, low, high = paired_bootstrap(a, b, groups=groups)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.004)


def test_a_difference_to_a_share_of_another() -> None:
    """An error that is 30 % lower: 1 - a <= 0.7 (1 - b) is a - 0.7 b >= 0.3."""
    assert difference([[0.86] * 4], [[0.8] * 4], factor=0.7).mean == pytest.approx(0.3)


def test_values_of_other_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        difference([[1.0, 0.0]], [[1.0]])


def test_holm() -> None:
    """The example of Holm's procedure: 0.01 x 4, 0.02 x 3, 0.03 x 2, and never below an earlier one."""
    assert holm([0.03, 0.01, 0.02, 0.04]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def measured(folder: Path, *entries: Entry) -> Measured:
    """The results of an arm "a" with label "A", against "base", and of an arm "b" with label "B"."""
    steps: list[Step] = []
    for number, one in enumerate(entries):
        path = folder / f"{number}.json"
        arm = "b" if one.label.startswith("B") else "a"
        Results(baseline="base", entries=[one]).save(path)
        steps.append(
            Step(name=str(number), kind="measure", words=(), makes=path, needs=(), cost=Cost(), arm=arm, measure="m")
        )
    return Measured(steps, {"a": "A", "b": "B"})


HALF, MOST, FEW = [0, 1] * 100, [1, 1, 1, 0] * 50, [0, 0, 0, 1] * 50


def claim(*tests: ClaimTest, **more: object) -> Claim:
    return Claim.model_validate({"claim": "c", "source": "s", "shows": "x", "tests": tests, **more})


@pytest.mark.parametrize("task", ["vqa", "vqa-types", "retrieval"])
def test_figures_are_of_one_way_of_asking(tmp_path: Path, task: str) -> None:
    by_statement = entry("A", MOST, task=task, protocol="MC-18, asked by statement")
    found = measured(tmp_path, entry("A", FEW, task=task, protocol="MC-18"), by_statement)
    means = {way: found.estimate(Figure(arm="a", task=task, way=way)) for way in ("similarity", "statement")}
    assert {way: one and one.mean for way, one in means.items()} == {"similarity": 0.25, "statement": 0.75}
    assert found.values(Figure(arm="a", task=task, way="statement + prior")) is None


def test_verdicts(tmp_path: Path) -> None:
    found = measured(tmp_path, entry("base", HALF), entry("A", MOST), entry("A, averaged", HALF), entry("B", FEW))
    up, down = ClaimTest(arm="a", against="baseline"), ClaimTest(arm="b", against_arm="a", against="baseline")
    even = ClaimTest(arm="a", alias="averaged", against="baseline")
    goal = ClaimTest(arm="a", above=70, by_mean=True)
    claims = [
        claim(up),
        claim(down),
        claim(even),
        claim(up, down),
        claim(up, even),
        claim(unseen="why"),
        claim(goal),
        claim(ClaimTest(arm="a", alias="missing")),
        claim(ClaimTest(arm="a", alias="averaged", against="baseline", above=-0.5)),
    ]
    judged = judge(claims, found, "similarity")
    unseen = "cannot be seen here"
    assert [one.verdict for one in judged] == [
        *("holds", "does not", unseen, "does not", unseen, unseen, "holds", unseen, "holds")
    ]
    assert judged[0].figures[0].startswith("accuracy +25.0 [+")
    assert judged[5].figures == ["why"]
    assert [place for place, one in enumerate(judged) if not one.one_seed] == [5, 7], "one training, or none"
    assert judged[7].figures == ["accuracy: not measured"]


def test_more_tests_need_more_evidence(tmp_path: Path) -> None:
    """A difference that holds alone does not among many (Holm)."""
    values = [1.0] * 8 + [0.0] * 192
    found = measured(tmp_path, entry("base", [0.0] * 200), entry("A", values), entry("B", HALF), entry("A, x", HALF))
    small = claim(ClaimTest(arm="a", against="baseline"))
    nothing = claim(ClaimTest(arm="b", against_arm="a", against="x"))
    assert judge([small], found, "similarity")[0].verdict == "holds"
    varied = claim(ClaimTest(arm="a", above=4.5))
    assert judge([small, *[varied] * 30, nothing], found, "similarity")[0].verdict == "cannot be seen here"
    # Goals are a family of their own, in which those that the mean decides count for nothing.
    by_mean = claim(ClaimTest(arm="a", above=4.5, by_mean=True), goal=True)
    goal = small.model_copy(update={"goal": True})
    assert judge([goal, *[varied] * 30, *[by_mean] * 30], found, "similarity")[0].verdict == "holds"
    goals = [goal, *[varied.model_copy(update={"goal": True})] * 30]
    assert judge(goals, found, "similarity")[0].verdict == "cannot be seen here"


def test_ways_of_asking_are_told_apart(tmp_path: Path) -> None:
    asked = Asked(way="statement + prior", prior_weight=1.0)
    found = measured(
        tmp_path,
        entry("base", HALF),
        entry("A", HALF),
        entry("A", MOST, protocol="MC-18, asked by statement"),
        entry("A", FEW, protocol="MC-18, asked by statement + prior", asked=asked),
    )
    means = {way: found.estimate(Figure(arm="a", way=way)) for way in ("similarity", "statement", "statement + prior")}
    assert [one and one.mean for one in means.values()] == [0.5, 0.75, 0.25]
    assert found.ways() == list(means)


def test_what_was_measured_on_something_else(tmp_path: Path) -> None:
    """A plan's main figures and those of another split are told apart, though their labels and weights are the same."""
    for number, values in enumerate([FEW, MOST]):
        Results(baseline="base", entries=[entry("A", values, "w0")]).save(tmp_path / f"{number}.json")
    steps = [
        Step(
            name=str(number), kind="measure", words=(), makes=tmp_path / f"{number}.json", needs=(), cost=Cost(),
            arm="a", measure="m", on=on,
        )
        for number, on in enumerate(["held out", ""])
    ]  # fmt: skip
    found = Measured(steps, {"a": "A"})
    means = [found.estimate(Figure(arm="a", on=on)) for on in ("", "held out", "elsewhere")]
    assert [one and one.mean for one in means] == [0.75, 0.25, None]
    judged = judge([claim(ClaimTest(arm="a", above=50, on=on)) for on in ("", "held out")], found, "similarity")
    assert [one.verdict for one in judged] == ["holds", "does not"]
    assert not Measured(steps[:1], {"a": "A"}).has("a")


def test_trainings_of_one_start_are_its_mean(tmp_path: Path) -> None:
    """Starts are compared in pairs, also if one is not measured yet. The references are scipy's tests of the pairs."""
    bases, tuned = {0: 0.2, 1: 0.6, 2: 0.9}, {0: 0.3, 2: 0.95, 3: 0.5}
    steps: list[Step] = []
    for seed in range(4):
        start, base = seed % 3, bases[seed % 3]
        for arm, value in (("a", tuned.get(seed)), ("b", base + 0.02 * seed)):
            if value is None:
                continue
            path = tmp_path / f"{arm}{seed}.json"
            own = entry(arm.upper(), [value] * 50, f"{arm}{seed}")
            Results(baseline=f"p{start}", entries=[entry(f"p{start}", [base] * 50, f"p{start}"), own]).save(path)
            steps.append(
                Step(
                    name=path.stem, kind="measure", words=(), makes=path, needs=(), cost=Cost(),
                    arm=arm, seed=seed, start=start, measure="m",
                )
            )  # fmt: skip
    found = Measured(steps, {"a": "A", "b": "B"}, by_start=True)
    values = found.values(Figure(arm="a"))
    assert values is not None
    assert (values.rows, values.trainings) == ([0, 2], 3)
    gain = found.estimate(Figure(arm="a"), Figure(arm="a", alias="baseline"))
    apart = found.estimate(Figure(arm="b"), Figure(arm="a"))
    base = found.estimate(Figure(arm="b", alias="baseline"))
    assert gain is not None
    assert (gain.mean, gain.seeds) == (pytest.approx((0.2 + 0.05) / 2), 2)
    assert gain.p == pytest.approx(ttest_1samp([0.2, 0.05], 0).pvalue)
    assert apart is not None
    assert apart.p == pytest.approx(ttest_1samp([0.23 - 0.4, 0.94 - 0.95], 0).pvalue)
    assert base is not None
    assert (base.mean, base.seeds) == (pytest.approx(sum(bases.values()) / 3), 3)
    # Without starts, the baselines are three models that no training changes.
    assert Measured(steps, {"a": "A", "b": "B"}).estimate(Figure(arm="b", alias="baseline")) != base


def test_two_metrics_of_a_model(tmp_path: Path) -> None:
    test = ClaimTest(arm="a", against="alone", metrics=["accuracy"], against_metric="other")
    one = entry("A", MOST)
    both = one.model_copy(update={"metrics": [*one.metrics, Metric.of("other", HALF)]})
    judged = judge([claim(test)], measured(tmp_path, both), "similarity")
    assert (judged[0].verdict, judged[0].figures[0][:15]) == ("holds", "accuracy +25.0 ")


def test_the_baseline_without_images(tmp_path: Path) -> None:
    found = measured(tmp_path, entry("base", HALF), entry("base, blind", MOST), entry("A", FEW))
    judged = judge([claim(ClaimTest(arm="a", alias="baseline, blind", against="baseline"))], found, "similarity")
    assert (judged[0].verdict, judged[0].figures[0][:15]) == ("holds", "accuracy +25.0 ")


def test_seeds_are_told_by_their_weights(tmp_path: Path) -> None:
    """The same weights in two files are one repetition."""
    same = [entry("A", HALF, "w0"), entry("A", HALF, "w0"), entry("A", MOST, "w1")]
    values = measured(tmp_path, *same).values(Figure(arm="a"))
    assert values is not None
    assert [sum(one) / len(one) for one in values.values] == [0.5, 0.75]


def test_a_figure_is_marked_by_the_notes_of_every_seed() -> None:
    equal = ['without the image: accuracy is not shown to be above x; accuracy, yes/no equals always "yes"']
    doubtful = ["without the image: accuracy, yes/no is not shown to be above x"]
    assert mark_of("accuracy, yes/no", [equal, equal]) == " ‡"
    assert mark_of("accuracy, yes/no", [equal, doubtful]) == " †"
    # The first seed alone would not tell.
    assert mark_of("accuracy, yes/no", [[], doubtful]) == " †"
    assert mark_of("accuracy", [equal]) == " †"
    assert mark_of("accuracy, yes/no", [[], []]) == ""
    assert mark_of("accuracy, other", [equal, doubtful]) == ""
