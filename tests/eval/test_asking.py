"""Ways of asking against loops in float64."""

import hashlib
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cli import Cli
from helpers.evaluation import SUBSET, ReferenceModel, captions, image_path, vqa_files
from helpers.training import scene_row, write_dialogues
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from torch import Tensor
from torch.nn.functional import normalize
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dialog_eval.asking.choice import held_out_questions
from dialog_eval.asking.debias import mean_of_nearest
from dialog_eval.asking.figures import VqaFigures
from dialog_eval.asking.text_prior import TextPrior
from dialog_eval.asking.ways import AskingOptions, Way, parse_ways
from dialog_eval.data.dialogues import is_held_out, pictures
from dialog_eval.data.vqa import load_vqa
from dialog_eval.results import Results, load_results
from dialog_gen.core.errors import UsageError
from dialog_gen.dataset.folder import DatasetFolder
from dialog_train.asking.prior import AnswerPrior
from dialog_train.asking.questions import fits
from dialog_train.asking.statements import statement

ROWS = 60
NEAR = 1e-5


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [scene_row(number) for number in range(ROWS)]


@pytest.fixture(scope="module")
def dialogues(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dialogues(tmp_path_factory.mktemp("asking") / "dialogues", {"a": rows[:40], "b": rows[40:]})


@pytest.fixture(scope="module")
def model(clips: tuple[Path, Path]) -> ReferenceModel:
    return ReferenceModel(clips[1])


def row_vectors(model: ReferenceModel, rows: list[dict[str, Any]], tmp_path: Path) -> Tensor:
    paths = [tmp_path / f"{number}.png" for number in range(len(rows))]
    for path, row in zip(paths, rows, strict=True):
        path.write_bytes(row["images"][0]["bytes"])
    return model.images(paths)


def measured(dialog_eval: Cli, split: Path, clips: tuple[Path, Path], out: Path, *options: object) -> Results:
    questions, answers = vqa_files(split)
    done = dialog_eval(
        *("vqa", "--checkpoint", clips[1], "--label", "tuned", "--baseline", clips[0], "--images", split / "images"),
        *("--questions", questions, "--annotations", answers, "--image-list", captions(split), "--out", out),
        *options,
    )
    assert done.code == 0, done.err
    return load_results(out)


def test_scores_are_the_formula(
    dialog_eval: Cli,
    split: Path,
    clips: tuple[Path, Path],
    model: ReferenceModel,
    dialogues: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    ways = "similarity,statement+prior,similarity+debias+prior,statement+debias+filter,debias:text,debias:mean-image"
    options = ["--score", ways, "--dialogues", dialogues, "--prior-weight", "3", "--debias-weight", "0.6"]
    results = measured(dialog_eval, split, clips, tmp_path / "r.json", *options)
    entries = [e for e in results.entries if e.label == "tuned" and e.task == "vqa"]
    base = "MC-18, official accuracy"
    assert [entry.protocol for entry in entries] == [
        base,
        f"{base}, asked by statement + prior",
        f"{base}, asked by similarity + prior, calibrated by nearest",
        f"{base}, asked by statement + filter, calibrated by nearest",
        f"{base}, calibrated by text",
        f"{base}, calibrated by mean-image",
    ]
    # All images of the dialogues are references, fewer than 128; the prior is of all pairs, for all weights are given.
    references = row_vectors(model, rows, tmp_path)
    prior = AnswerPrior.of_pairs((p["user"], p["assistant"]) for row in rows for p in row["texts"])
    images = model.images([image_path(split, SUBSET, n) for n in range(12)])
    asked_about = images[sorted({item.image_id for item in load_vqa(*map(Path, vqa_files(split)))})]
    mean = normalize(asked_about.mean(0), dim=0)
    scale = float(model.model.logit_scale.detach().exp())
    items = load_vqa(*map(Path, vqa_files(split)))
    clear = 0
    for number, item in enumerate(items):
        plain = model.texts([f"{item.question} {answer}" for answer in item.choices])
        told = model.texts([statement(item.question, answer) for answer in item.choices])
        seen = images[item.image_id]
        alone = model.texts([item.question])[0]
        for place, entry in enumerate(entries):
            scores = []
            for text, answer in zip(told if place in (1, 3) else plain, item.choices, strict=True):
                value = float(text @ seen)
                if place in (2, 3):
                    value -= 0.6 * sum(float(text @ other) for other in references) / ROWS
                if place in (4, 5):
                    value -= 0.6 * float(text @ (alone if place == 4 else mean))
                if place in (1, 2):
                    value = scale * value + 3 * float(prior.log_probabilities(item.question, [answer])[0])
                if place == 3 and not fits(item.question, answer) and any(fits(item.question, c) for c in item.choices):
                    value = -math.inf
                scores.append(value)
            near = [a for a, s in zip(item.choices, scores, strict=True) if s > max(scores) - NEAR * scale]
            clear += len(near) == 1
            right = [min(0.3 * item.answers.count(answer), 1.0) for answer in near]
            assert entry.metrics[0].values[number] == pytest.approx(right[0]) or len(near) > 1
    assert clear > 0.8 * 6 * len(items), "a test that can tell"
    assert len({tuple(entry.metrics[0].values) for entry in entries}) > 3
    assert [e.asked and (e.asked.debias_weight, e.asked.prior_weight, e.asked.chosen_on) for e in entries] == [
        None,
        (None, 3, None),
        (0.6, 3, None),
        (0.6, None, None),
        (0.6, None, None),
        (0.6, None, None),
    ]
    assert [e.asked.way for e in entries[-2:] if e.asked] == [
        "similarity + debias:text",
        "similarity + debias:mean-image",
    ]


def test_statements_of_the_generator(
    dialog_eval: Cli,
    split: Path,
    clips: tuple[Path, Path],
    model: ReferenceModel,
    rows: list[dict[str, Any]],
    dialogues: Path,
    tmp_path: Path,
) -> None:
    """Questions of the dialogues are stated as there, others by rules; no yes has a no to the same question."""
    stated = set[str]()
    told = list[dict[str, Any]]()
    for row in rows:
        named = [pair for pair in row["texts"] if pair["assistant"] not in ("yes", "no")]
        stated |= {pair["user"] for pair in named}
        sentences = [f"Hmm, {p['user']} Surely {p['assistant']}." if p in named else None for p in row["texts"]]
        told.append(row | {"statements": sentences})
    options = ["--score", "statement", "--dialogues", write_dialogues(tmp_path / "told", {"a": told})]
    results = measured(dialog_eval, split, clips, tmp_path / "r.json", *options)
    (entry,) = [e for e in results.entries if e.label == "tuned" and e.task == "vqa"]
    assert entry.protocol.startswith("MC-18, official accuracy, asked by statement, sentences of told ")
    images = model.images([image_path(split, SUBSET, n) for n in range(12)])
    clear, of_generator = 0, 0
    for number, item in enumerate(load_vqa(*map(Path, vqa_files(split)))):
        texts = [
            f"Hmm, {item.question} Surely {answer}"
            if item.question in stated and answer not in ("yes", "no")
            else statement(item.question, answer)
            for answer in item.choices
        ]
        scores = [float(text @ images[item.image_id]) for text in model.texts(texts)]
        near = [a for a, s in zip(item.choices, scores, strict=True) if s > max(scores) - NEAR]
        of_generator += any(text.startswith("Hmm") for text in texts)
        clear += len(near) == 1
        right = min(0.3 * item.answers.count(near[0]), 1.0)
        assert entry.metrics[0].values[number] == pytest.approx(right) or len(near) > 1
    assert clear > 20
    assert of_generator > 10
    questions, answers = vqa_files(split)
    refused = dialog_eval(
        *("vqa", "--checkpoint", clips[1], "--images", split / "images", "--image-list", captions(split)),
        *("--questions", questions, "--annotations", answers, "--out", tmp_path / "x.json"),
        *("--score", "statement", "--dialogues", dialogues),
    )
    assert (refused.code, "has no statements" in refused.err) == (2, True)


def test_weights_are_chosen_on_held_out_images(
    dialog_eval: Cli,
    split: Path,
    clips: tuple[Path, Path],
    model: ReferenceModel,
    dialogues: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    held = [row for row in rows if is_held_out(row["image_sha256"])]
    others = [row for row in rows if not is_held_out(row["image_sha256"])]
    assert held
    assert others
    options = ["--score", "similarity+prior", "--dialogues", dialogues]
    results = measured(dialog_eval, split, clips, tmp_path / "r.json", *options)
    (entry,) = (e for e in results.entries if e.label == "tuned" and e.task == "vqa")
    asked = entry.asked
    assert asked is not None
    assert asked.chosen_on is not None
    assert f"{len(held)} images of dialogues" in asked.chosen_on
    assert "of this evaluation" not in asked.chosen_on
    prior = AnswerPrior.of_pairs((p["user"], p["assistant"]) for row in others for p in row["texts"])
    pairs = [(row["image_sha256"], p["user"], p["assistant"]) for row in held for p in row["texts"]]
    questions, right = held_out_questions(pairs, prior.answers)
    vectors = dict(zip((row["image_sha256"] for row in held), row_vectors(model, held, tmp_path), strict=True))
    scale = float(model.model.logit_scale.detach().exp())
    wanted: list[float] = []
    for tried in asked.tried:
        hits = 0
        for question, index in zip(questions, right, strict=True):
            texts = model.texts([f"{question.text} {answer}" for answer in question.candidates])
            log_prior = prior.log_probabilities(question.text, question.candidates)
            scores = scale * (texts @ vectors[question.image_id]).numpy() + tried["prior_weight"] * log_prior
            hits += int(np.argmax(scores) == index)
        wanted.append(hits / len(questions))
    assert [tried["accuracy"] for tried in asked.tried] == pytest.approx(wanted)
    best = max(wanted)
    assert asked.prior_weight == asked.tried[wanted.index(best)]["prior_weight"]
    assert len(set(wanted)) > 1, "a test that can tell"
    # The weights of both models are in the table, and the prior without an image is a reference.
    assert dialog_eval("table", tmp_path / "r.json", "--out", tmp_path / "t.md").code == 0
    table = (tmp_path / "t.md").read_text()
    assert f"    - prior weight {asked.prior_weight:g}, chosen on {asked.chosen_on}" in table
    assert "prior of dialogues" in table


def test_weights_that_are_chosen_on_what_is_measured_are_told(
    dialog_eval: Cli, split: Path, clips: tuple[Path, Path], dialogues: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    files = sorted((split / "images").rglob("*.png"))[:5]
    shared = [
        row | {"images": [{"bytes": data, "path": None}], "image_sha256": hashlib.sha256(data).hexdigest()}
        for row, data in zip(rows[:5], map(Path.read_bytes, files), strict=True)
    ]
    held = write_dialogues(tmp_path / "held", {"a": [*shared, *rows[5:10]]})
    options = ["--score", "prior", "--dialogues", dialogues, "--held-out", held]
    results = measured(dialog_eval, split, clips, tmp_path / "r.json", *options)
    (entry,) = (e for e in results.entries if e.label == "tuned" and e.task == "vqa")
    assert entry.asked is not None
    assert "of held (5 of them among the images of this evaluation)" in str(entry.asked.chosen_on)
    assert not any("prior counted" in note for note in entry.notes)
    # The prior is counted on some of them, and told likewise: for the ways that have it.
    options = ["--score", "similarity,prior", "--prior-weight", "1", "--dialogues", held]
    results = measured(dialog_eval, split, clips, tmp_path / "r.json", *options)
    plain, prior = (e for e in results.entries if e.label == "tuned" and e.task == "vqa")
    told = "prior counted on images of held (5 of them among the images of this evaluation)"
    assert (told in plain.all_notes(), told in prior.all_notes()) == (False, True)


def test_held_out_questions_have_the_right_answer_among_18() -> None:
    answers = [f"answer {n}" for n in range(30)]
    pairs = [(f"image {n}", f"What is {n % 3}?", answer) for n, answer in enumerate(answers)]
    prior = AnswerPrior.of_pairs((question, answer) for _, question, answer in pairs)
    questions, right = held_out_questions(pairs, prior.answers)
    assert [q.candidates[i] for q, i in zip(questions, right, strict=True)] == answers
    assert all(len(set(question.candidates)) == 18 for question in questions)
    assert len(set(right.tolist())) > 5
    assert held_out_questions([("i", "q", "yes")] * 3, prior.answers)[0] == []


@pytest.mark.parametrize("k", [1, 3, 50])
def test_mean_of_nearest(k: int) -> None:
    vectors, references = (normalize(torch.randn(n, 8, dtype=torch.float64), dim=-1) for n in (5, 20))
    wanted = [np.mean(sorted((float(v @ r) for r in references), reverse=True)[:k]) for v in vectors]
    assert mean_of_nearest(vectors, references, k).tolist() == pytest.approx(wanted)


def test_null_images_and_text_prior_through_the_command(
    dialog_eval: Cli, split: Path, clips: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = write_language_model(tmp_path / "lm")
    options = [
        "--score",
        "similarity,debias,debias:nearest,prior",
        "--calibrate",
        "null-image",
        "--prior-model",
        folder,
    ]
    results = measured(dialog_eval, split, clips, tmp_path / "r.json", *options)
    entries = [e for e in results.entries if e.label == "tuned" and e.task == "vqa"]
    assert [e.protocol.removeprefix("MC-18, official accuracy") for e in entries] == [
        "",
        ", calibrated by null-image",
        ", calibrated by nearest of the test",
        ", asked by similarity + prior of lm",
    ]
    said: dict[str, list[float]] = {}
    for entry in results.entries:
        if entry.task == "vqa":
            said.setdefault(entry.protocol, []).extend(entry.metrics[0].values)
    assert len(set(map(tuple, said.values()))) > 2
    assert [e.asked.text() for e in entries if e.asked] == [
        "debias weight 1, as given",
        "debias weight 0.75, as given",
        "prior weight 1, as given",
    ]


def write_language_model(folder: Path) -> Path:
    words = {
        word: n for n, word in enumerate(["<unk>", "Question", "Answer", ":", "?", "is", "it", "yes", "no", "red"])
    }
    tokens = Tokenizer(token_models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=10, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0, bos_token_id=None, eos_token_id=None
        )
    ).save_pretrained(folder)
    return folder


def test_text_prior_is_the_chain_rule(tmp_path: Path) -> None:
    folder = write_language_model(tmp_path / "lm")
    answers = ["yes", "no", "red no", "it is red"]
    found = TextPrior(folder).log_probabilities("is it red?", answers)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    network = GPT2LMHeadModel.from_pretrained(folder).double().eval()
    sums: list[float] = []
    for answer in answers:
        ids = tokenizer("Question: is it red?\nAnswer:")["input_ids"]
        total = 0.0
        for token in tokenizer(answer)["input_ids"]:
            with torch.no_grad():
                total += float(network(torch.tensor([ids])).logits[0, -1].log_softmax(0)[token])
            ids = [*ids, token]
        sums.append(total)
    whole = math.log(sum(map(math.exp, sums)))
    assert found.tolist() == pytest.approx([one - whole for one in sums], abs=1e-5)
    assert len({round(one, 3) for one in sums}) == 4
    with pytest.raises(UsageError, match=r"no config\.json"):
        TextPrior(tmp_path)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="cannot be opened"):
        TextPrior(folder)


@pytest.mark.parametrize("folds", [1, 3])
def test_retrieval_by_a_query_bank(
    folds: int,
    dialog_eval: Cli,
    split: Path,
    clips: tuple[Path, Path],
    model: ReferenceModel,
    dialogues: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    command = ["retrieval", "--checkpoint", clips[1], "--label", "tuned", "--images", split / "images"]
    command += ["--captions", captions(split), "--query-bank", dialogues, "--out", tmp_path / "r.json"]
    command += ["--folds", folds]
    done = dialog_eval(*command, "--query-bank-weight", "0.75")
    assert done.code == 0, done.err
    plain, debiased = load_results(tmp_path / "r.json").entries
    assert debiased.protocol == f"{plain.protocol}, calibrated by nearest queries of {dialogues.name}"
    others = [row for row in rows if not is_held_out(row["image_sha256"])]
    bank_images, bank_texts = row_vectors(model, others, tmp_path), model.texts([row["caption"] for row in others])
    records = json.loads(Path(captions(split)).read_text())["annotations"]
    texts = model.texts([record["caption"] for record in records])
    images = model.images([image_path(split, SUBSET, n) for n in range(12)])
    of = np.array([record["image_id"] for record in records])
    cosine = (texts @ images.T).numpy()
    cosine[(of * folds // 12)[:, None] != np.arange(12) * folds // 12] = -np.inf
    of_image = cosine - 0.75 * (images @ bank_texts.T).mean(1).numpy()[None]
    of_text = (cosine - 0.75 * (texts @ bank_images.T).mean(1).numpy()[:, None]).T
    wanted = {
        "image R@1": (of_image.argmax(1) == of).astype(float),
        "text R@1": (of[of_text.argmax(1)] == np.arange(12)).astype(float),
    }
    for name, hits in wanted.items():
        metric = debiased.metric(name)
        assert metric is not None
        assert (np.array(metric.values) == hits).mean() > 0.95
    assert plain.metrics[0].values != debiased.metrics[0].values
    # Chosen: the best of what was tried.
    assert dialog_eval(*command).code == 0
    asked = load_results(tmp_path / "r.json").entries[1].asked
    assert asked is not None
    assert max(tried["R@1"] for tried in asked.tried) == next(
        tried["R@1"] for tried in asked.tried if tried["debias_weight"] == asked.debias_weight
    )
    assert "among the images of this evaluation" not in str(asked.chosen_on)
    # Two images of the evaluation are in the bank, and held out there. Bytes after a PNG's end change its hash only.
    images_folder = tmp_path / "images"
    shutil.copytree(split / "images", images_folder)
    shared: list[dict[str, Any]] = []
    for row, file in zip(rows, sorted(images_folder.rglob("*.png"))[:2], strict=False):
        plain_png = file.read_bytes()
        padded = (plain_png + bytes(n) for n in itertools.count())
        data = next(data for data in padded if is_held_out(hashlib.sha256(data).hexdigest()))
        file.write_bytes(data)
        shared.append(
            row | {"images": [{"bytes": data, "path": None}], "image_sha256": hashlib.sha256(data).hexdigest()}
        )
    bank = write_dialogues(tmp_path / "bank", {"a": [*rows, *shared]})
    assert dialog_eval(*command, "--images", images_folder, "--query-bank", bank).code == 0
    asked = load_results(tmp_path / "r.json").entries[1].asked
    assert asked is not None
    assert str(asked.chosen_on).endswith("of bank (2 of them among the images of this evaluation)")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dialogues", "no"], "--dialogues: no does not exist: give a folder that `dialog-gen run --out` wrote."),
        (["--dialogues", "{ok}", "--held-out", "{images}"], "--held-out: {images} is no dataset folder"),
    ],
)
def test_missing_dialogues_are_told_before_anything_is_encoded(
    dialog_eval: Cli, split: Path, dialogues: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    places = {"ok": dialogues, "images": split / "images"}
    questions, answers = vqa_files(split)
    command = ["vqa", "--checkpoint", "none", "--images", split / "images", "--out", tmp_path / "r.json"]
    command += [
        "--questions",
        questions,
        "--annotations",
        answers,
        "--image-list",
        captions(split),
        "--score",
        "similarity+prior",
        *(flag.format(**places) for flag in flags),
    ]
    assert said.format(**places) in dialog_eval(*command).mistake


def test_a_missing_query_bank_is_told_before_anything_is_encoded(dialog_eval: Cli, split: Path, tmp_path: Path) -> None:
    command = ["retrieval", "--checkpoint", "none", "--images", split / "images", "--out", tmp_path / "r.json"]
    command += ["--captions", captions(split), "--query-bank", tmp_path / "no"]
    said = dialog_eval(*command).mistake
    assert "--query-bank is a dialogues dataset, or images with captions: " in said
    assert f"{tmp_path / 'no'}" in said


def test_figures_that_need_no_image_are_said_to(split: Path) -> None:
    figures = VqaFigures(load_vqa(*map(Path, vqa_files(split))))
    polar = [place for place, item in enumerate(figures.items) if item.answer_type == "yes/no"]
    yes = [float(place == polar[0]) for place in range(len(figures.items))]
    perfect = [1.0] * len(yes)
    always = {'always "yes"': figures.by_answer(yes)}
    assert figures.notes(figures.by_answer(perfect), always) == []
    # Right about all but yes/no, where it says yes.
    mixed = [y if item.answer_type == "yes/no" else 1.0 for y, item in zip(yes, figures.items, strict=True)]
    assert figures.notes(figures.by_answer(mixed), always) == [
        'without the image: accuracy, yes/no equals always "yes"'
    ]
    worse = [0.0 if item.answer_type == "number" else 1.0 for item in figures.items]
    (note,) = figures.notes(figures.by_answer(worse), {"the model blind": figures.by_answer(mixed)})
    assert "accuracy, number is not shown to be above the model blind" in note


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"score": "similarty"}, "unknown part 'similarty'"),
        ({"score": "similarity+statement"}, "two kinds of text"),
        ({"score": "prior"}, "needs --dialogues"),
        ({"score": "similarity", "calibrate": "text"}, "--score similarity has no debias"),
        ({"score": "debias:nearest", "calibrate": "text"}, "no debias without a kind"),
        ({"score": "debias+debias:text"}, "debias.debias:text has two kinds of debias"),
        ({"score": "debias:noise"}, "unknown part 'debias:noise'"),
        ({"dialogues": "d"}, "--dialogues d: --score has no prior, debias or statement"),
        ({"score": "debias", "prior_weight": "1"}, "--prior-weight 1: --score has no prior"),
        (
            {"score": "prior", "dialogues": "d", "held_out": "h", "prior_weight": "1"},
            "--held-out h: all weights are given",
        ),
        ({"score": "debias", "debias_weight": "auto"}, "chosen on held-out dialogues: give --dialogues"),
        ({"score": "debias", "debias_weight": "-1"}, "--debias-weight -1: give a number from 0 to 1,000"),
        ({"score": "debias", "debias_weight": "nan"}, "--debias-weight nan: give a number"),
        (
            {"score": "prior", "dialogues": "d", "prior_weight": "1e300"},
            "--prior-weight 1e300: give a number from 0 to",
        ),
    ],
)
def test_flags_that_contradict_one_another(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        AskingOptions.of_flags(**flags)


def test_ways() -> None:
    parsed = parse_ways("similarity, statement+prior,prior + statement,debias,debias:nearest,debias:text + prior")
    assert parsed == (
        Way(),
        Way(text="statement", prior=True),
        Way(debias="nearest"),
        Way(debias="text", prior=True),
    )
    assert [way.name for way in parsed[2:]] == ["similarity + debias", "similarity + debias:text + prior"]
    assert parse_ways(",".join(way.name for way in parsed)) == parsed
    assert parse_ways("debias", "null-image") == (Way(debias="null-image"),)
    default = AskingOptions.of_flags()
    assert (default.ways, default.chooses) == ((Way(),), False)
    calibrated = AskingOptions.of_flags(calibrate="text")
    assert (calibrated.ways, calibrated.weights) == ((Way(debias="text"),), ((1.0, 0.0),))
    assert AskingOptions.of_flags(score="debias,similarity,debias:text").weights == (
        (0.75, 0.0),
        (0.0, 0.0),
        (1.0, 0.0),
    )
    assert AskingOptions.of_flags(score="prior", dialogues="d").chooses


def test_dialogues_without_images_are_refused(
    dialog_eval: Cli, split: Path, clips: tuple[Path, Path], rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    bare = write_dialogues(tmp_path / "bare", {"a": [{**row, "images": None} for row in rows]})
    questions, answers = vqa_files(split)
    done = dialog_eval(
        *("vqa", "--checkpoint", clips[1], "--images", split / "images", "--questions", questions),
        *("--annotations", answers, "--image-list", captions(split), "--out", tmp_path / "r.json"),
        *("--score", "prior", "--dialogues", bare),
    )
    assert done.code == 2
    assert "has no images" in done.err


@pytest.mark.parametrize(
    ("dialogues", "held_out", "score", "said"),
    [
        ("one", None, "prior", "--dialogues DATA/one has too few images to hold some out"),
        ("held", None, "prior", "--dialogues DATA/held has no images besides the held-out ones"),
        ("held", None, "debias", "--dialogues DATA/held has no images besides the held-out ones"),
        ("one", "all", "prior", "--dialogues DATA/one has no images besides --held-out DATA/all. Give"),
        ("one", "all", "debias", "--dialogues DATA/one has no images besides --held-out DATA/all. Give"),
        ("one", "silent", "prior", "--held-out DATA/silent: the gates keep no question and answer. Give"),
        ("one", "alike", "prior", "--held-out DATA/alike: every answer is 'red', so all weights answer alike. Give"),
        ("one", "several", "prior", "--held-out DATA/several has no dialogue about one image. Give"),
    ],
)
def test_held_out_dialogues_that_do_not_do(
    dialog_eval: Cli,
    split: Path,
    clips: tuple[Path, Path],
    rows: list[dict[str, Any]],
    tmp_path: Path,
    dialogues: str,
    held_out: str | None,
    score: str,
    said: str,
) -> None:
    """Each message names the dataset that is at fault, and what it lacks."""
    held = [row for row in rows if is_held_out(row["image_sha256"])]
    other = next(row for row in rows if not is_held_out(row["image_sha256"]))
    datasets = {
        "one": [other],
        "held": held,
        "all": [other, *held],
        "silent": [row | {"texts": []} for row in rows],
        "alike": [row | {"texts": [{"user": "What color is it?", "assistant": "red"}]} for row in held],
        "several": [other | {"images": other["images"] * 2}],
    }
    for name in filter(None, (dialogues, held_out)):
        write_dialogues(tmp_path / name, {"a": datasets[name]})
    questions, answers = vqa_files(split)
    done = dialog_eval(
        *("vqa", "--checkpoint", clips[1], "--baseline", clips[0], "--images", split / "images"),
        *("--questions", questions, "--annotations", answers, "--image-list", captions(split)),
        *("--out", tmp_path / "r.json", "--score", score, "--dialogues", tmp_path / dialogues),
        *(("--held-out", tmp_path / held_out) if held_out else ()),
    )
    assert said.replace("DATA", str(tmp_path)) in done.mistake


def test_dialogues_about_several_images_are_left_out(tmp_path: Path) -> None:
    made = [scene_row(number) for number in range(4)]
    both = [image for row in made[:2] for image in row["images"]]
    write_dialogues(tmp_path / "d", {"a": [made[0] | {"images": both}, *made[1:]]})
    found = pictures(DatasetFolder(str(tmp_path / "d")), most=2)
    assert [picture.image.image_id for picture in found] == [row["image_sha256"] for row in made[1:3]]
