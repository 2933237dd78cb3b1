"""`dialog-eval reproduce`: runs the steps of a plan, skips what is done, and writes a page."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.cli import Cli
from helpers.results import entry, save

from dialog_eval.reproduce.cost import cost_line, costs
from dialog_eval.reproduce.plan import Cost
from dialog_eval.reproduce.run import Records, run_steps
from dialog_eval.reproduce.steps import Step
from dialog_gen.core.errors import UsageError

COUNT = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"


def step(out: Path, name: str, *needs: str, code: str = COUNT, minutes: float = 1.0, more: str = "") -> Step:
    makes = out / name
    return Step(
        name=name,
        kind="other",
        words=(sys.executable, "-c", code, str(makes), *([more] if more else [])),
        makes=makes,
        needs=needs,
        cost=Cost(minutes=minutes),
    )


def test_steps_run_once_in_order(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b", "a"), step(tmp_path, "c")]
    lines: list[str] = []
    assert run_steps(steps, tmp_path, tell=lines.append).done == {"a", "b", "c"}
    assert [line.split()[1] for line in lines if line.startswith("[")] == ["a:", "b:", "c:"]
    lines.clear()
    assert run_steps(steps, tmp_path, tell=lines.append).done == {"a", "b", "c"}
    assert lines == []
    assert [(tmp_path / name).read_text() for name in "abc"] == ["x", "x", "x"]


def test_a_missing_output_is_made_again(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b")]
    run_steps(steps, tmp_path)
    (tmp_path / "b").unlink()
    run_steps(steps, tmp_path)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["x", "x"]


def test_another_command_line_makes_a_file_anew_and_is_refused_for_a_folder(tmp_path: Path) -> None:
    folder = "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir(exist_ok=True)"
    run_steps([step(tmp_path, "file"), step(tmp_path, "folder", code=folder)], tmp_path)
    lines: list[str] = []
    run_steps([step(tmp_path, "file", more="1")], tmp_path, tell=lines.append)
    assert lines[0].startswith("[1/1] file: ")
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(UsageError, match=f"another command line .*rm -r {tmp_path / 'folder'}"):
        run_steps([step(tmp_path, "new"), step(tmp_path, "folder", code=folder, more="1")], tmp_path)
    assert not (tmp_path / "new").exists()


def test_two_steps_of_one_name_would_lose_the_record_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir(exist_ok=True)"
    first = step(tmp_path, "same", code=folder)
    second = dataclasses.replace(step(tmp_path, "same", code=folder, more="1"), makes=tmp_path / "other")
    run_steps([first], tmp_path)
    with pytest.raises(UsageError, match=rf"{tmp_path / 'same'} was made by a step of the same name, same, of another"):
        run_steps([second], tmp_path)
    monkeypatch.chdir(tmp_path)
    Records(tmp_path).check([dataclasses.replace(first, makes=Path("same"))])
    (tmp_path / "same").rmdir()
    Records(tmp_path).check([second])


def test_what_needs_a_step_that_was_made_anew_is_made_anew(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b", "a"), step(tmp_path, "c", "b"), step(tmp_path, "d")]
    run_steps(steps, tmp_path)
    (tmp_path / "a").unlink()
    assert costs(steps, Records(tmp_path))[-1].done == 1
    # As if a run was interrupted after the first step.
    run_steps(steps[:1], tmp_path)
    assert Records(tmp_path).done(steps).keys() == {"a", "d"}
    assert run_steps(steps, tmp_path).done == {"a", "b", "c", "d"}
    assert [(tmp_path / name).read_text() for name in "abcd"] == ["x"] * 4
    assert Records(tmp_path).done(steps).keys() == {"a", "b", "c", "d"}


def test_records_of_earlier_versions_are_done(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a"), step(tmp_path, "b", "a")]
    run_steps(steps, tmp_path)
    for name in "ab":
        file = tmp_path / "steps" / f"{name}.json"
        record = {key: value for key, value in json.loads(file.read_text()).items() if key in ("command", "seconds")}
        file.write_text(json.dumps(record))
    assert Records(tmp_path).done(steps).keys() == {"a", "b"}
    run_steps([step(tmp_path, "a", more="1")], tmp_path)
    assert Records(tmp_path).done([step(tmp_path, "a", more="1"), steps[1]]).keys() == {"a"}


def test_a_folder_made_of_what_was_there_before_is_refused(tmp_path: Path) -> None:
    folder = "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir(exist_ok=True)"
    steps = [step(tmp_path, "a"), step(tmp_path, "b", "a", code=folder)]
    run_steps(steps, tmp_path)
    (tmp_path / "a").unlink()
    for _ in range(2):
        with pytest.raises(UsageError, match=f"b was made from what a made before: .*rm -r {tmp_path / 'b'}"):
            run_steps(steps, tmp_path)
        run_steps(steps[:1], tmp_path)
    (tmp_path / "b").rmdir()
    assert run_steps(steps, tmp_path).done == {"a", "b"}


def test_no_page_shows_what_was_made_of_other_inputs(tmp_path: Path) -> None:
    run_steps([step(tmp_path, "a"), step(tmp_path, "b", "a")], tmp_path)
    (tmp_path / "a").unlink()
    again = [step(tmp_path, "a", code="import sys; sys.exit('no room')"), step(tmp_path, "b", "a")]
    assert run_steps(again, tmp_path).left == {"b": "a"}
    assert not (tmp_path / "b").exists()


def test_a_failed_step_leaves_out_what_needs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fails = "import sys; print('first'); sys.exit('no room')"
    steps = [
        step(tmp_path, "a", code=fails),
        step(tmp_path, "b", "a"),
        step(tmp_path, "c", "b"),
        step(tmp_path, "d"),
        step(tmp_path, "e", code="pass"),
    ]
    outcome = run_steps(steps, tmp_path)
    assert outcome.done == {"d"}
    assert outcome.failed["a"] == "no room"
    assert "is not there" in outcome.failed["e"]
    assert outcome.left == {"b": "a", "c": "a"}
    assert "no room" in caplog.text


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    wrong = Step(name="a", kind="other", words=("no-such-program",), makes=tmp_path / "a", needs=(), cost=Cost())
    assert run_steps([wrong], tmp_path).failed == {"a": "no-such-program: No such file or directory"}


def test_jobs_run_at_the_same_time(tmp_path: Path) -> None:
    """Each waits for the other's file, so one at a time would never end."""
    meet = (
        "import sys, pathlib, time\n"
        "p = pathlib.Path(sys.argv[1]); p.write_text('x'); other = p.with_name(sys.argv[2])\n"
        "for _ in range(200):\n    if other.exists(): sys.exit(0)\n    time.sleep(0.1)\nsys.exit(1)"
    )
    steps = [step(tmp_path, "a", code=meet, more="b"), step(tmp_path, "b", code=meet, more="a")]
    assert run_steps(steps, tmp_path, jobs=2).done == {"a", "b"}


def test_the_first_training_of_a_folder_prepares_it_alone(tmp_path: Path) -> None:
    """It would clash with another that derives the same data; later ones find it there, and run together."""
    prepares = (
        "import sys, pathlib, time; p = pathlib.Path(sys.argv[1])\n"
        "busy, there = p.with_name('busy'), p.with_name('w')\n"
        "if not there.exists():\n    busy.touch(exist_ok=False); time.sleep(0.5); there.touch(); busy.unlink()\n"
        "p.write_text('x')"
    )
    steps = [step(tmp_path, name, code=prepares, more="data.work=w") for name in "abc"]
    assert run_steps(steps, tmp_path, jobs=3).done == {"a", "b", "c"}


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    inner = (
        "from dialog_eval.reproduce.run import run_steps; from pathlib import Path; import sys\n"
        "try:\n    run_steps([], Path(sys.argv[1]).parent)\n"
        "except Exception as error:\n    Path(sys.argv[1]).write_text(str(error))"
    )
    assert run_steps([step(tmp_path, "a", code=inner)], tmp_path).done == {"a"}
    assert "another dialog-eval reproduce is writing" in (tmp_path / "a").read_text()


def test_costs_use_the_rate_of_what_is_done(tmp_path: Path) -> None:
    steps = [step(tmp_path, "a", minutes=2), step(tmp_path, "b", minutes=3)]
    steps.append(dataclasses.replace(step(tmp_path, "c", minutes=10), kind="train"))
    records = Records(tmp_path)
    assert costs(steps, records)[-1].minutes == 15
    run_steps(steps[:1], tmp_path)
    records.add(steps[0], 240)  # twice as long as expected, which says nothing about trainings
    total = costs(steps, records)[-1]
    assert (total.steps, total.done, total.minutes) == (3, 1, 16)
    free = [*steps, step(tmp_path, "d", minutes=0)]
    assert cost_line(costs(free, records)[-1]).endswith("1 step whose cost the plan does not say")


def write_plan(folder: Path, *results: Path, code: str = "") -> Path:
    """A plan whose measures copy results; each arm is a model that is there."""
    code = code or "import sys, shutil; shutil.copy(sys.argv[1], sys.argv[2])"
    arms = "".join(
        f'[arms.arm-{number}]\nlabel = "{number}"\nmodel = "{path}"\nmeasures = ["copy"]\n'
        for number, path in enumerate(results)
    )
    run = shlex.join([sys.executable, "-c", code, "{model}", "{makes}"])
    (folder / "mine.toml").write_text(
        'title = "Mine & yours"\nabout = "About."\nscales = { shapes = [] }\n'
        f"[measures.copy]\nrun = {json.dumps(run)}\n{arms}"
    )
    return folder / "mine.toml"


def test_the_command(tmp_path: Path, dialog_eval: Cli) -> None:
    """Prints the cost first, runs the steps, writes the page, and the second time runs nothing."""
    (results,) = save(tmp_path, [entry("base", [0, 1, 1, 0]), entry("tuned", [1, 1, 1, 0])])
    plan = write_plan(tmp_path, results)
    out = tmp_path / "out"
    dry = dialog_eval("reproduce", plan, "--out", out, "--dry-run")
    assert dry.code == 0
    assert shlex.join([str(results), str(out / "results/arm-0-0-copy.json")]) in dry.out
    assert "1 step, 0 done; 1 step whose cost the plan does not say" in dry.out
    head, *body = [line.split() for line in dry.out.splitlines() if line.startswith(("  ", "all", "evaluations"))]
    assert " ".join(head).endswith("images to download of unknown cost")
    assert body == [["evaluations", "1", "0", "0", "0", "0", "1"], ["all", "1", "0", "0", "0", "0", "1"]]
    assert not out.exists()
    ended = dialog_eval("reproduce", plan, "--out", out)
    assert ended.code == 0, ended.err
    assert "[1/1] arm-0-0-copy" in ended.err
    page = (out / "mine.md").read_text()
    assert page.startswith("# Mine &amp; yours\n")
    assert "tuned" in page
    assert "--scale shapes`: 1 step," in page
    again = dialog_eval("reproduce", plan, "--out", out)
    assert again.code == 0
    assert "arm-0-0-copy" not in again.err
    assert "1 step, 1 done" in again.out
    made = out / "results/arm-0-0-copy.json"
    made.write_bytes(made.read_bytes()[:50])
    damaged = dialog_eval("reproduce", plan, "--out", out)
    assert (damaged.code, damaged.err.strip().endswith("Remove it: the same command makes it again.")) == (2, True)
    made.unlink()
    assert "[1/1] arm-0-0-copy" in dialog_eval("reproduce", plan, "--out", out).err


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "HERE/mine.toml"], "--out HERE/mine.toml cannot be written: HERE/mine.toml is no folder"),
        (["--out", "HERE/mine.toml/out"], "--out HERE/mine.toml/out cannot be written: HERE/mine.toml is no folder"),
        (["--page", "HERE"], "--page HERE is a folder: give the name of a file, such as HERE/page.md."),
        (["--page", "HERE/x.html"], "--page HERE/x.html: a page is written as .md, not as '.html'."),
        (["--page", "HERE/x"], "--page HERE/x: a page is written as .md, not as 'a file without suffix'."),
        (["--page", "HERE/mine.toml/x.md"], "cannot be written: HERE/mine.toml is no folder"),
    ],
)
def test_places_that_cannot_be_written_are_refused_first(
    tmp_path: Path, dialog_eval: Cli, flags: list[str], said: str, dry: list[str]
) -> None:
    (results,) = save(tmp_path, [entry("base", [0, 1]), entry("tuned", [1, 1])])
    plan = write_plan(tmp_path, results)
    flags = [flag.replace("HERE", str(tmp_path)) for flag in flags]
    ended = dialog_eval("reproduce", plan, "--out", tmp_path / "out", *flags, *dry)
    assert said.replace("HERE", str(tmp_path)) in ended.mistake
    assert not (tmp_path / "out").exists()


def write_study(folder: Path, name: str, arm: str, results: Path, more: str = "") -> Path:
    """A study of one arm, whose measure copies results; they are on val."""
    run = shlex.join([sys.executable, "-c", "import sys, shutil; shutil.copy(*sys.argv[1:])", str(results), "{makes}"])
    recalls: dict[str, Any] = {"task": "retrieval", "metric": "image R@1", "dataset": "test 0123"}
    scores = [entry("base", [0, 1], **recalls), entry("base", [0, 1], dataset="test 0123")]
    (main,) = save(folder / name, scores)
    of_main = shlex.join([sys.executable, "-c", "import sys, shutil; shutil.copy(*sys.argv[1:])", str(main), "{makes}"])
    plan = folder / f"{name}.toml"
    plan.write_text(
        f'title = "{name}"\nscales = {{ shapes = [] }}\n[page]\nkind = "study"\n{more}\n'
        f"[measures.main]\nrun = {json.dumps(of_main)}\n"
        f'[measures.copy]\non = "val"\nrun = {json.dumps(run)}\n'
        f'[arms.{arm}]\nlabel = "{arm}"\nmodel = "m"\nmeasures = ["main", "copy"]\n'
    )
    return plan


def test_claims_about_another_plan_and_tables_of_ones_own(tmp_path: Path, dialog_eval: Cli) -> None:
    """Arms of another plan are judged once it was run into the same folder; before, the page says what is missing."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    ours, theirs = [entry("base", [0, 1] * 20), entry("ours", [1] * 30 + [0] * 10)], [entry("theirs", [0] * 40)]
    mine, others = save(tmp_path, ours, theirs)
    other = write_study(tmp_path, "two", "theirs", others)
    claims = tmp_path / "claims.toml"
    claims.write_text(
        '[[claims]]\nclaim = "Ours is better"\nsource = "us"\nshows = "accuracy"\nunseen = "run two"\n'
        'tests = [{ arm = "ours", against_arm = "theirs", against = "alone", on = "val" }]\n'
    )
    table = '{ name = "VQA on val", task = "vqa", metric = "accuracy", on = "val" }'
    more = (
        f'with_plans = ["{other}"]\nclaims = "{claims}"\n'
        f'tables = [{{ title = "More", note = "A note.", columns = [{table}] }}]'
    )
    plan, out = write_study(tmp_path, "one", "ours", mine, more), tmp_path / "out"
    assert dialog_eval("reproduce", plan, "--out", out).code == 0
    page = (out / "one.md").read_text()
    assert re.search(r"^\| Ours is better .*not measured; run two .*cannot be seen here \|$", page, re.MULTILINE)
    assert "\n## More\n" in page
    assert re.search(r" VQA on val \|\n.*\n\| untuned +\| +50\.0 \[.*\n\| ours +\| +75\.0 \[", page)
    assert "A note." in page
    assert dialog_eval("reproduce", other, "--out", out).code == 0
    assert dialog_eval("reproduce", plan, "--out", out).code == 0
    page = (out / "one.md").read_text()
    assert re.search(r"^\| Ours is better .*accuracy \+75\.0 .*\*\*holds\*\* \|$", page, re.MULTILINE)
    assert "run two" not in page
    assert "theirs" not in (out / "one-details.md").read_text()


HEAD = 'title = "T"\nscales = { shapes = [] }\n'
MEASURED = '[measures.m]\nrun = "x {makes}"\n[arms.a]\nlabel = "a"\nmodel = "x"\nmeasures = ["m"]\n'


@pytest.mark.parametrize(
    ("plan", "flags", "said"),
    [
        (HEAD + '[steps.a]\nrun = "x"\n', [], "plan mine measures nothing: it has no arm with measures"),
        (HEAD + '[steps.a]\nrun = "x \'"\n', [], "plan mine: steps.a.run: no closing quotation in"),
        (HEAD + 'launcher = "\'x"\n[arms.a]\nlabel = "a"\nsystem = "draft"\n', [], "launcher: no closing quotation"),
        (
            HEAD + '[measures.m]\nrun = "x {makes} \'"\n[arms.a]\nlabel = "a"\nmodel = "x"\nmeasures = ["m"]\n',
            [],
            "measures.m.run: no closing quotation",
        ),
        (
            HEAD + '[steps.a]\nrun = "x"\nmakes = "{where}/x"\n',
            [],
            "plan mine: steps.a.makes is '{where}/x': it knows {out} only.",
        ),
        (HEAD + '[arms.a]\nlabel = "a"\nmodel = "x"\nmeasures = ["m"]\n', [], "unknown measure 'm'; Known: none."),
        (
            HEAD + '[measures.m]\nrun = "x {makes}"\n[arms.a]\nlabel = "a"\nmodel = "x"\nmeasures = ["m"]\n'
            '[page]\nkind = "study"\nablated = "a"\n',
            [],
            "page.ablated: 'a' needs a measure on validation data",
        ),
        ('title = "T"\nscales = ["shapes"]\n', [], "has no table of scales, such as scales = { shapes = [] }."),
        (HEAD + MEASURED + '[page]\nkind = "study"\nclaims = "nope"\n', [], "unknown file of claims 'nope'"),
        (HEAD + MEASURED + '[page]\nkind = "study"\nwith_plans = ["nope"]\n', [], "unknown plan 'nope'"),
        (HEAD + "seeds = 101\n", [], "seeds: must be at most 100"),
        (HEAD, ["--seeds", "100000"], "--seeds 100000 is too large: give at most 100."),
    ],
)
def test_mistakes_in_a_plan(tmp_path: Path, dialog_eval: Cli, plan: str, flags: list[str], said: str) -> None:
    (tmp_path / "mine.toml").write_text(plan)
    assert said in dialog_eval("reproduce", tmp_path / "mine.toml", "--out", tmp_path / "out", *flags).mistake
    assert not (tmp_path / "out").exists()


def test_the_page_is_written_without_what_failed(tmp_path: Path, dialog_eval: Cli) -> None:
    (results,) = save(tmp_path, [entry("base", [0, 1]), entry("tuned", [1, 1])])
    plan = write_plan(tmp_path, results, tmp_path / "missing.json")
    ended = dialog_eval("reproduce", plan, "--out", tmp_path / "out")
    assert ended.code == 1
    assert "the step arm-1-0-copy failed" in ended.err
    assert "Traceback" not in ended.err.splitlines()[-1]
    assert "Missing: 1 step, which" in (tmp_path / "out/mine.md").read_text()


def test_what_a_failed_step_leaves_is_on_no_page(tmp_path: Path, dialog_eval: Cli) -> None:
    (results,) = save(tmp_path, [entry("base", [0, 1]), entry("A", [1, 1]), entry("B", [1, 1])])
    (tmp_path / "mine.toml").write_text(
        "\ufeff"  # as some editors write before the text
        + HEAD.replace('"T"', '"<b>T</b> \\u001b[31m"')
        + f"""
        arms.a = {{ label = "A", model = "x", measures = ["good"] }}
        arms.b = {{ label = "B", model = "x", measures = ["bad"] }}
        measures.good.run = "cp {results} {{makes}}"
        measures.bad.run = "sh -c 'cp {results} {{makes}}; exit 3'"
        """
    )
    ended = dialog_eval("reproduce", tmp_path / "mine.toml", "--out", tmp_path / "out")
    assert ended.code == 1
    assert "The first said: exit code 3 (see" in ended.err
    page = (tmp_path / "out/mine.md").read_text()
    assert page.startswith("# &lt;b&gt;T&lt;/b&gt; \\x1b[31m\n")
    assert "table: 1 results" in ended.out + ended.err
    (tmp_path / "mine.toml").write_text(
        HEAD + MEASURED.replace("x {makes}", f"sh -c 'cp {results} {{makes}}; exit 3'") + '[page]\nkind = "study"\n'
    )
    ended = dialog_eval("reproduce", tmp_path / "mine.toml", "--out", tmp_path / "out")
    assert "nothing was measured" in ended.err


def test_a_study_of_validation_data_only_has_a_page(tmp_path: Path, dialog_eval: Cli) -> None:
    (results,) = save(tmp_path, [entry("base", [0, 1]), entry("a", [1, 1])])
    plan = HEAD + MEASURED.replace("x {makes}", f"cp {results} {{makes}}").replace("run", 'on = "val"\nrun')
    (tmp_path / "mine.toml").write_text(plan + '[page]\nkind = "study"\nablated = "a"\n')
    assert dialog_eval("reproduce", tmp_path / "mine.toml", "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out/mine.md").read_text().startswith("# T\n")


def test_without_a_name_the_plans_are_listed(dialog_eval: Cli) -> None:
    assert "table-5-10" in dialog_eval("reproduce").out
    assert "did you mean 'results'" in dialog_eval("reproduce", "resluts").mistake


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_steps_and_the_same_command_continues(tmp_path: Path, number: signal.Signals) -> None:
    (results,) = save(tmp_path, [entry("base", [0, 1]), entry("tuned", [1, 1])])
    waits = (
        "import sys, shutil, pathlib, time, os; mark = pathlib.Path(sys.argv[2] + '.begun')\n"
        "if not mark.exists():\n    mark.write_text(str(os.getpid())); time.sleep(100)\n"
        "shutil.copy(sys.argv[1], sys.argv[2])"
    )
    plan = write_plan(tmp_path, results, code=waits)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "dialog_eval", "reproduce", str(plan), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    mark = out / "results/arm-0-0-copy.json.begun"
    deadline = time.monotonic() + 100
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=50)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert ("the same command goes on from there" in said) is (number == signal.SIGINT)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert subprocess.run(command, check=True, capture_output=True, timeout=200).returncode == 0
    assert (out / "mine.md").exists()
