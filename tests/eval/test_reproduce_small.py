"""A plan of each form, run in the embedded world with few images and steps, by the commands that it states."""

import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.forks import ForkedCommand

from dialog_eval.reproduce import run as run_module
from dialog_eval.reproduce.plan import FOLDER, load_plan

pytestmark = pytest.mark.slow

# The world in small, and dialogues from scene graphs, so that no engine starts.
SMALL: dict[str, Any] = {
    "shapes": "dialog-gen download shapes --out {shapes} --limit 48",
    "test": "dialog-gen download shapes --split test --out {test} --limit 24",
    "gallery-images": "dialog-gen download shapes --split test --out {gallery-images} --limit 25",
    "val": "dialog-gen download shapes --split val --out {val} --limit 24",
    "dialogues": "python -m dialog_gen.shapes.oracle {shapes} --out {dialogues}",
    "dialogues-blip2": "python -m dialog_gen.shapes.oracle {shapes} --out {dialogues-blip2} --truth 0.5",
    "val-dialogues": "python -m dialog_gen.shapes.oracle {val} --out {val-dialogues}",
}
STEPS = ["optim.max_steps=2", "optim.batch_size=16", "optim.warmup_steps=0", "log.tensorboard=false"]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f'"{key}" = {toml(one)}' for key, one in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else repr(value)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def small(name: str, folder: Path, arms: tuple[str, ...] | None = None) -> Path:
    """The shipped plan with less of everything, as a user's plan; `arms`: those of a study that stay."""
    plan = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    parts = [tomllib.loads((FOLDER / "parts" / f"{part}.toml").read_text()) for part in plan["scales"]["shapes"]]
    for kind in ("steps", "arms", "measures"):
        plan[kind] = {key: value for part in [*parts, plan] for key, value in part.get(kind, {}).items()}
    for key in plan["steps"].keys() & SMALL.keys():
        plan["steps"][key] |= {"run": SMALL[key]}
    plan["arms"] = {key: arm for key, arm in plan["arms"].items() if arms is None or key in arms}
    if plan["page"]["kind"] == "study":
        page = plan["page"]
        page |= {key: [arm for arm in page[key] if arm in plan["arms"]] for key in ("headline", "ablations")}
        for table in page["tables"]:
            table["arms"] = [arm for arm in table.get("arms", ()) if arm in plan["arms"]]
        page["curves"] = {
            title: {arm: x for arm, x in arms.items() if arm in plan["arms"]} for title, arms in page["curves"].items()
        }
    for arm in plan["arms"].values():
        # Oracle dialogues went through no gates.
        arm["set"] += [*STEPS, *(["data.kept_only=false"] if arm["system"] == "draft-plus" else [])]
    plan["scales"] = {"shapes": []}
    path = folder / f"{name}.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in plan.items()))
    return path


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the plans, which share images, dialogues and vectors."""
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are imported once for all steps; `test_reproduce.py` runs steps as processes of their own."""
    monkeypatch.setattr(run_module, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": ForkedCommand}))


def run(dialog_eval: Cli, plan: Path, out: Path, *more: object) -> str:
    ended = dialog_eval("reproduce", plan, "--out", out, *more)
    assert ended.code == 0, ended.err
    return (out / f"{plan.stem}.md").read_text()


def test_a_table_of_recalls(tmp_path: Path, out: Path, dialog_eval: Cli) -> None:
    page = run(dialog_eval, small("table-5-2", tmp_path), out)
    assert page.startswith("# Table 5.2: ")
    rows = re.findall(r"^\|[^|]*\| (published change|published|ours|our change) ", page, re.MULTILINE)
    assert [rows.count(kind) for kind in ("published", "ours", "published change", "our change")] == [5, 5, 4, 4]
    assert re.search(r"\| beta 0.6 +\| published +\| +38.7 \|", page)
    assert re.search(r"published change \| +-1.0 ", page)
    assert re.search(r"\*\*\d+ of 24 changes have the direction", page)
    assert (out / "table-5-2-details.md").exists()


def test_a_misspelt_alias_is_told(tmp_path: Path, out: Path, dialog_eval: Cli) -> None:
    """The steps of the plan are there."""
    plan = small("table-5-2", tmp_path)
    plan.write_text(plan.read_text().replace('"embedding blend 0.6"', '"embeding blend 0.6"'))
    ended = dialog_eval("reproduce", plan, "--out", out)
    said = "have no 'embeding blend 0.6', they have '"
    assert (ended.code, ended.out.count(said) + ended.err.count(said)) == (0, 1), ended.out + ended.err
    assert (out / "table-5-2.md").read_text().count("not measured") == 6


def test_a_table_of_answers(tmp_path: Path, out: Path, dialog_eval: Cli) -> None:
    page = run(dialog_eval, small("table-5-8", tmp_path), out)
    assert re.search(r"\| DRAFT, 3 epochs, blended +\| published +\| +28.3 \|", page)
    assert "not measured" not in page


@pytest.mark.parametrize("number", [1, 3, 4, 5, 6, 7, 9, 10])
def test_the_other_tables(tmp_path: Path, out: Path, dialog_eval: Cli, number: int) -> None:
    """Each row and each column of the published table has a figure of ours."""
    rows = load_plan(f"table-5-{number}", "shapes").page.rows  # type: ignore[reportAttributeAccessIssue]
    page = run(dialog_eval, small(f"table-5-{number}", tmp_path), out)
    assert page.startswith(f"# Table 5.{number}: ")
    cells = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("|")]
    ours = [row for row in cells if row[1].strip() == "ours"]
    assert len(ours) == len(rows)
    assert all(re.match(r" *\d+\.\d", cell) for row in ours for cell in row[2:]), ours


def test_the_study(tmp_path: Path, out: Path, dialog_eval: Cli) -> None:
    """With two arms: each section is there, and what was not trained is said not to be measured."""
    plan = small("results", tmp_path, ("draft", "plus"))
    # A blend is refused where no interval is narrow enough, as with 24 images.
    plan.write_text(plan.read_text().replace("--choose {makes}", "--choose {makes} --most-loss 100"))
    page = run(dialog_eval, plan, out, "--seeds", "1")
    top = page.splitlines()[:10]
    assert any("answers" in line and "untuned" in line for line in top)
    assert any(re.match(r"Goals: \d+ of 10 are reached", line) for line in top)
    assert any("cannot be seen here." in line for line in top)
    for section in ("Goals", "Claims", "What each training gives", "Ways of asking"):
        assert f"\n## {section}" in page
    assert re.search(r"^\| DRAFT +\| +1 \|", page, re.MULTILINE)
    assert re.search(r"^\| DRAFT, averaged +\| +1 \|", page, re.MULTILINE)
    assert "R@1: not measured" in page
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
