"""The shipped plans: what their commands name exists, and the real command lines take their flags."""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import open_clip
import pytest
import typer

from dialog_eval.cli import app as eval_app
from dialog_eval.reproduce.claims import load_claims
from dialog_eval.reproduce.plan import list_plans, load_plan, shipped_plans
from dialog_eval.reproduce.steps import Step, plan_steps
from dialog_gen.cli.app import app as gen_app
from dialog_gen.clip.base import CLIP_MODELS
from dialog_gen.core.errors import UsageError
from dialog_gen.core.toml_files import read_toml
from dialog_gen.download.manifests import load_manifest
from dialog_gen.models.registry import MODELS
from dialog_gen.protocols.protocol import load_protocol
from dialog_train.api import load_recipe
from dialog_train.cli import app as train_app

PROGRAMS: dict[str, Any] = {
    "dialog-gen": typer.main.get_command(gen_app),
    "dialog-train": typer.main.get_command(train_app),
    "dialog-eval": typer.main.get_command(eval_app),
}
PLANS = [
    pytest.param(name, scale, id=f"{name}, {scale}")
    for name, path in shipped_plans().items()
    for scale in read_toml(path, "plan")["scales"]
]
OUT = Path("some-out")


def steps_of(name: str, scale: str, seeds: int | None = None) -> list[Step]:
    return plan_steps(load_plan(name, scale), OUT, seeds)


def values(step: Step, flag: str) -> list[str]:
    return [value for word, value in itertools.pairwise(step.words) if word == flag]


def is_known_clip(name: str, pretrained: str | None) -> bool:
    """Also one that a step makes; `test_commands` checks that it does."""
    if OUT in Path(name).parents:
        return pretrained is None
    return name in CLIP_MODELS.names() if pretrained is None else (name, pretrained) in open_clip.list_pretrained()


def check(step: Step) -> None:
    program, *words = step.words
    if program == "accelerate":
        assert words[:3] == ["launch", "-m", "dialog_train"]
        program, words = "dialog-train", words[3:]
    if program == "python":
        assert words[0] == "-m"
        assert importlib.util.find_spec(words[1])
        return
    name, *arguments = words
    given = PROGRAMS[program].commands[name].make_context(name, arguments).params
    if step.kind == "train":
        recipe = load_recipe(given["config"], given["overrides"], system=name)
        assert recipe.out == step.makes
        assert recipe.model in CLIP_MODELS.names() or is_known_clip(recipe.model, recipe.pretrained) or name == "close"
    if (program, name) == ("dialog-gen", "run"):
        load_protocol(given["protocol"] or MODELS.get(given["model"]).protocol)
    if name == "download":
        assert given["split"] in (None, *load_manifest(given["manifest"]).splits)
    if name == "embed":
        assert is_known_clip(given["model"], given["pretrained"])


@pytest.mark.parametrize(("name", "scale"), PLANS)
def test_commands(name: str, scale: str) -> None:
    """Flags, recipes and names exist; each step comes after what it reads, and what is measured is made."""
    steps = steps_of(name, scale)
    made: list[str] = []
    for step in steps:
        check(step)
        assert set(step.needs) <= {done.name for done in steps[: steps.index(step)]}
        inside = [word.partition("=")[2] or word for word in step.words if str(OUT) in word]
        own = str(step.makes)
        for path in inside:
            assert path.startswith(own) or any(path.startswith(one) for one in made) or path.endswith("-data"), path
        made.append(own)
    assert len({step.name for step in steps}) == len(steps) == len(set(made))
    for step in steps:
        for flag in ("--checkpoint", "--baseline"):
            for model in values(step, flag):
                pretrained = values(step, "--baseline-pretrained")
                known = OUT not in Path(model).parents and is_known_clip(
                    model, pretrained[0] if flag == "--baseline" and pretrained else None
                )
                assert known or any(model in (one, f"{one}/model") for one in made)


@pytest.mark.parametrize(("name", "scale"), PLANS)
def test_costs_are_stated(name: str, scale: str) -> None:
    steps = steps_of(name, scale)
    trainings = [step.cost for step in steps if step.kind == "train"]
    assert trainings
    assert all(cost.gpu_hours if scale == "full" else cost.minutes for cost in trainings)
    assert all(step.cost.minutes or step.cost.gpu_hours or step.cost.images for step in steps)
    assert scale != "full" or sum(step.cost.images for step in steps) > 2_000_000


@pytest.mark.parametrize("name", [name for name in shipped_plans() if name.startswith("table")])
def test_rows_are_measured_by_what_their_arms_write(name: str) -> None:
    """A blend that a row shows is among those that the arm's evaluation is told to measure."""
    for scale in ("shapes", "full"):
        plan = load_plan(name, scale)
        assert plan.page.kind == "table"
        steps = {step.arm: step for step in plan_steps(plan, OUT) if step.is_results}
        for row in plan.page.rows:
            kind, _, beta = row.alias.partition(" blend ")
            assert row.alias in ("alone", "baseline") or (
                kind in values(steps[row.arm], "--blend") and beta in values(steps[row.arm], "--betas")[0].split(",")
            )


def test_every_table_of_the_thesis_has_a_plan() -> None:
    assert {f"table-5-{number}" for number in range(1, 11)} <= set(shipped_plans())


def test_plans_are_listed_in_the_order_of_their_numbers() -> None:
    tables = [name for name, *_ in list_plans() if name.startswith("table-5-")]
    assert tables == [f"table-5-{number}" for number in range(1, 11)]


def test_plans_of_the_first_world_can_share_a_folder() -> None:
    """By default they do: a step of one name is one command. The second world's plan needs a folder of its own."""
    words: dict[str, tuple[str, ...]] = {}
    for name in shipped_plans().keys() - {"richer"}:
        for step in steps_of(name, "shapes"):
            assert words.setdefault(step.name, step.words) == step.words, (name, step.name)


def test_published_figures_of_the_same_model_agree() -> None:
    """A model in several tables has the same figures in each; in the thesis, too, one of C3M L/14 differs."""
    seen: dict[tuple[str, str, int], list[float]] = {}
    for name in shipped_plans():
        page = load_plan(name, "shapes").page
        if page.kind == "table":
            for row in page.rows:
                figures = seen.setdefault((row.arm, row.alias, len(row.published)), row.published)
                apart = [place for place, (a, b) in enumerate(zip(figures, row.published, strict=True)) if a != b]
                assert apart == [] or (row.arm == "c3m-l14-blip2" and apart == [4])


@pytest.mark.parametrize("name", ["results", "pretrainings", "richer"])
def test_claims_name_arms_and_measures_of_the_study(name: str) -> None:
    plan = load_plan(name, "shapes")
    assert plan.page.kind == "study"
    plans = [plan, *(load_plan(other, "shapes") for other in plan.page.with_plans)]
    of_arms = {arm: (made, told) for made in reversed(plans) for arm, told in made.arms.items()}
    for claim in load_claims(plan.page.claims):
        assert claim.tests or claim.unseen
        for test in claim.tests:
            for arm, alias in ((test.arm, test.alias), (test.against_arm or test.arm, test.against)):
                made, told = of_arms[arm]
                assert made is plan or claim.unseen
                assert test.on in {made.measures[measure].on for measure in told.measures}
                assert alias != "averaged" or "averaged" in told.measures
                assert alias != "as answers" or "as-answers" in told.measures


def test_seeds(tmp_path: Path) -> None:
    """Main arms have as many as asked for, ablations their own number; the first seed of all main arms comes first."""
    trained = [step.name for step in steps_of("results", "shapes", 2) if step.kind == "train"]
    main = ["captions-only", "draft", "no-mmd", "third-tower", "plus", "plus-questions"]
    main += ["plus-questions-longer", "plus-longer", "plus-both-longer"]
    assert trained[: 2 * len(main)] == [f"{arm}-{seed}" for seed in (0, 1) for arm in main]
    assert [name for name in trained if name.startswith("plus-no-foils")] == ["plus-no-foils-0"]


def test_seeds_are_dealt_over_the_pretrainings() -> None:
    """A CLIP is trained before what starts from it, several trainings do, and the evaluation compares with it."""
    steps = {step.name: step for step in steps_of("pretrainings", "shapes", 5)}
    order = list(steps)
    assert [name for name in order if name.startswith("pretraining-")] == [f"pretraining-{start}" for start in range(3)]
    for seed, start in enumerate([0, 1, 2, 0, 1]):
        clip, data, tuned = f"clip-{start}", f"draft-data-{start}", f"other-draft-{seed}"
        assert steps[f"{tuned}-scores"].start == start
        assert {f"seed={seed}"} <= set(values(steps[tuned], "--set"))
        assert values(steps[data], "--model") == [str(OUT / clip)]
        assert {f"model={OUT / clip}", f"data.work={OUT / data}"} <= set(values(steps[tuned], "--set"))
        assert values(steps[f"{tuned}-scores"], "--baseline") == [str(OUT / clip)]
        assert order.index(f"pretraining-{start}") < order.index(data) < order.index(tuned)
    assert steps["pretraining-0"].words[-1] != steps["pretraining-1"].words[-1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('measures.m.run = "true {nothing} {makes}"', "names {nothing}, which is no step"),
        ('arms.a.measures = ["m", "n"]', "unknown measure 'n'"),
        ('steps.s.run = "true {t}"\nsteps.t.run = "true {s}"', "steps need each other"),
        ('page = { kind = "table", columns = [], rows = [{ label = "x", published = [], arm = "b" }] }', "arm 'b'"),
        (
            'page = { kind = "table", columns = [], rows = [{ label = "x", published = [1], arm = "a" }] }',
            "1 figures for 0",
        ),
        ('page = { kind = "study", headline = ["b"] }', "page.headline names the arm 'b'"),
        (
            'page = { kind = "study", curves = { "dialogues" = { b = 1 } } }',
            "page.curves.'dialogues' names the arm 'b'",
        ),
        ('measures.m.run = "true"', "a measure writes {makes}"),
        ('arms."a b".label = "B"', "arms.a b"),
        ('steps.a = { run = "true", each_start = true }', "'a' is a step of each start and an arm"),
        ("seeds = 0", "seeds"),
        ("starts = 0", "starts"),
        (
            'page = { kind = "study", tables = [{ title = "t", columns = [], arms = ["b"] }] }',
            "page.tables, 't', names the arm 'b'",
        ),
        ('colour = "red"', "unknown key"),
        ('arms.b = { label = "A", model = "x" }', "the arms 'a' and 'b' have the same label, 'A'"),
        ('arms.b = { label = "", model = "x" }', "arms.b.label"),
        ('steps.a-0-m.run = "true"', "a-0-m is the name of two steps, one of them of the arm a"),
        (
            'steps.s = { run = "true", each_start = true }\nsteps.s-0.run = "true"',
            "s-0 is the name of two steps",
        ),
        ("arms.a.minutes = inf", "arms.a.minutes"),
        ('measures.m = { run = "true {makes}", suffix = "/../x" }', "measures.m.suffix"),
    ],
)
def test_a_wrong_plan(tmp_path: Path, content: str, complaint: str) -> None:
    """Is refused with the plan's name and what is wrong."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "t"\nscales = { shapes = [] }\narms.a.label = "A"\narms.a.model = "x"\n'
        + ('arms.a.measures = ["m"]\n' if "arms.a.measures" not in content else "")
        + ('measures.m.run = "true {makes}"\n' if "measures.m" not in content else "")
        + content
    )
    with pytest.raises(UsageError, match=complaint) as error:
        plan_steps(load_plan(str(path), "shapes"), OUT)
    assert "mine" in str(error.value)


@pytest.mark.parametrize(
    ("arm", "complaint"),
    [
        ('system = "drafty", recipe = "draft-shapes"', "drafty"),
        ('system = "draft", recipe = "nope"', "nope"),
        ('system = "draft", recipe = "third-tower-shapes"', "is for the system 'third-tower'"),
        ('system = "draft", recipe = "draft-shapes", set = ["optim.batchsize=16"]', "batchsize"),
        ('system = "draft", recipe = "draft-shapes", set = ["optim.batch_size=many"]', "batch_size"),
    ],
)
def test_a_training_that_its_command_would_refuse(tmp_path: Path, arm: str, complaint: str) -> None:
    """Before anything starts, also in a dry run."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'title = "t"\nscales = { shapes = [] }\nmeasures.m.run = "true {model} {makes}"\n'
        f'arms.a = {{ label = "A", measures = ["m"], {arm} }}\n'
    )
    with pytest.raises(UsageError, match=complaint) as error:
        plan_steps(load_plan(str(path), "shapes"), OUT)
    assert "plan mine: the arm a: " in str(error.value)


def test_the_plan_of_the_guide(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    (tmp_path / "mine.toml").write_text(guide.partition('```toml title="mine.toml"\n')[2].partition("```")[0])
    plan = load_plan(str(tmp_path / "mine.toml"), "shapes")
    steps = plan_steps(plan, OUT, 2)
    assert plan.given == "mine.toml"
    assert [step.name for step in steps if step.arm == "slow"] == [
        f"slow-{seed}{measure}" for seed in (0, 1) for measure in ("", "-scores", "-mine")
    ]


@pytest.mark.parametrize("parts", ['"shapes"', "[3]"])
def test_a_scale_without_a_list_of_parts(tmp_path: Path, parts: str) -> None:
    (tmp_path / "mine.toml").write_text(f'title = "t"\nscales = {{ shapes = {parts} }}\n')
    with pytest.raises(UsageError, match="a scale is a list of parts"):
        load_plan(str(tmp_path / "mine.toml"), "shapes")


def test_a_scale_that_a_plan_does_not_have() -> None:
    with pytest.raises(UsageError, match="--scale full: the plan results has shapes"):
        load_plan("results", "full")
