"""DRAFT-plus: its objective against the losses in words, and its training from a recipe."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.candidates import prepare
from helpers.systems import check_resume, check_two_processes
from helpers.training import write_recipe
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from dialog_gen.clip.base import SEARCH, Clip
from dialog_gen.clip.loader import load_clip
from dialog_gen.clip.text.texts import Texts
from dialog_gen.clip.third_tower.checkpoint import ThirdTowerClip
from dialog_gen.core.errors import UsageError
from dialog_train.data.candidate_set import CandidateBatch
from dialog_train.systems.draft_plus.config import DraftPlusRecipe
from dialog_train.systems.draft_plus.training import PlusObjective, freeze_embeddings
from dialog_train.text_tuning import TextTuning

COUNT, FOILS, WIDTH = 6, 2, 32
PARTS: dict[str, dict[str, Any]] = {
    "captions": {"loss": {"captions": 0.7, "foils": 0}},
    "dialogues": {"loss": {"captions": 0, "foils": 0, "dialogues": 0.6, "direction": "i2t"}},
    "foils": {"loss": {"captions": 0, "foils": 1.5}},
    "denials": {"loss": {"captions": 0, "foils": 0, "denials": 0.5}},
    "conjunctions": {"loss": {"captions": 0, "foils": 0, "denials": 0.5, "conjunctions": 0.3}},
    "truths": {"loss": {"captions": 0, "foils": 0, "denials": 0.5, "conjunctions": 0.3, "truths": 0.4}},
    "vectors": {"guard": {"kind": "vectors", "weight": 3, "recombined": True}},
    "similarities": {"guard": {"kind": "similarities", "weight": 2, "recombined": True}},
}


def recipe_of(**changes: Any) -> DraftPlusRecipe:
    content: dict[str, Any] = {
        "model": "tiny",
        "out": "out",
        "data": {"dialogues": "d", "work": "w"},
        "optim": {"lr": 1e-3, "batch_size": COUNT},
        "foils": FOILS,
    }
    return DraftPlusRecipe.model_validate(content | changes)


def texts(count: int, seed: int) -> Texts:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (count,), generator=generator)
    tokens = torch.randint(1, 400, (count, 12), generator=generator)
    tokens[torch.arange(count), lengths - 1] = 49407
    tokens[torch.arange(12) >= lengths[:, None]] = 0
    return Texts(tokens, lengths.numpy())


def batch(recipe: DraftPlusRecipe) -> CandidateBatch:
    """The right text, the foils, and what else the recipe asks for."""
    generator = torch.Generator().manual_seed(1)
    count = 1 + FOILS + 2 * (recipe.loss.denials > 0) + 4 * (recipe.loss.conjunctions > 0)
    there = torch.ones(COUNT, count, dtype=torch.bool)
    there[1, 2] = there[2, 1:3] = False
    there[2, 4:5] = there[4, 3:4] = there[3, 5:] = there[5, 7:8] = False
    return CandidateBatch(
        image_ids=[str(number) for number in range(COUNT)],
        image_vectors=normalize(torch.randn(COUNT, WIDTH, generator=generator), dim=-1),
        captions=texts(COUNT, 2),
        candidates=texts(9, 3),
        which=torch.randint(0, 9, (COUNT, count), generator=generator),
        there=there,
        recombined=texts(COUNT, 4),
    )


@pytest.fixture
def clip(tiny_clip: Path) -> Clip:
    return load_clip(str(tiny_clip))


def moved(clip: Clip, objective: PlusObjective, changes: dict[str, Any]) -> TextTuning:
    """A system whose tower is no more what it was when the objective was made."""
    system = TextTuning(clip, objective, recipe_of(**changes).optim)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for parameter in system.tower.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return system


def expected(part: str, clip: Clip, base: Clip, batch: CandidateBatch) -> float:
    """The weighted loss of a part, in float64, with the towers of open_clip."""

    def encode(of: Texts, model: Clip) -> Tensor:
        tokens = torch.nn.functional.pad(of.tokens, (0, 24 - of.tokens.shape[1]))
        return normalize(model.model.encode_text(tokens).double(), dim=-1)

    images = batch.image_vectors.double()
    scale, base_scale = (float(one.model.logit_scale.detach().double().exp()) for one in (clip, base))
    captions = encode(batch.captions, clip)
    candidates = encode(batch.candidates, clip)
    own = torch.arange(COUNT)

    def contrastive(of: Tensor) -> tuple[float, float]:
        logits = scale * of @ images.T
        return float(cross_entropy(logits, own)), float(cross_entropy(logits.T, own))

    def score(image: int, place: int) -> float:
        return float(scale * images[image] @ candidates[batch.which[image, place]])

    def choice(image: int, right: int, wrong: list[int]) -> list[float]:
        wrong = [place for place in wrong if batch.there[image, place]]
        if not wrong or not batch.there[image, right]:
            return []
        scores = torch.tensor([score(image, place) for place in (right, *wrong)], dtype=torch.float64)
        return [float(-scores.log_softmax(0)[0])]

    def mean(found: list[list[float]]) -> float:
        flat = [value for one in found for value in one]
        return sum(flat) / len(flat)

    if part == "captions":
        return 0.7 * sum(contrastive(captions)) / 2
    if part == "dialogues":
        return 0.6 * contrastive(candidates[batch.which[:, 0]])[1]
    if part == "foils":
        return 1.5 * mean([choice(image, 0, [1, 2]) for image in range(COUNT)])
    if part == "denials":
        return 0.5 * mean([choice(image, *of) for image in range(COUNT) for of in ((0, [3]), (4, [1]))])
    if part == "conjunctions":
        return 0.3 * mean([choice(image, 5, [6, 7, 8]) for image in range(COUNT)])
    if part == "truths":
        # The right text and the denial of a wrong one are true; foils and the denial of the right one are false.
        true, false = (
            [score(image, place) for image in range(COUNT) for place in places if batch.there[image, place]]
            for places in ((0, 4), (1, 2, 3))
        )
        return 0.4 * mean([[math.log1p(math.exp(wrong - right)) for wrong in false] for right in true])
    held, wanted = (torch.cat([encode(of, one) for of in (batch.captions, batch.recombined)]) for one in (clip, base))
    if part == "vectors":
        return 3 * float((1 - (held * wanted).sum(1)).mean())
    found, wanted = (base_scale * of @ images.T for of in (held, wanted))
    rows, columns = (
        kl_div(found.log_softmax(dim), wanted.log_softmax(dim), log_target=True, reduction="sum") for dim in (1, 0)
    )
    return 2 * float(rows / (2 * COUNT) + columns / COUNT) / 2


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_each_part_alone(clip: Clip, tiny_clip: Path, part: str) -> None:
    base = load_clip(str(tiny_clip))
    changes = PARTS[part]
    recipe = recipe_of(**changes)
    system = moved(clip, PlusObjective(clip, recipe), changes)
    losses = system.module(batch(recipe))
    assert len(losses) == (3 if "guard" in changes else sum(map(bool, [*dict(recipe.loss).values()])) - 1)
    assert float([*losses.values()][-1]) == pytest.approx(expected(part, clip, base, batch(recipe)), rel=1e-5)


def test_all_parts_are_summed_and_mini_batches_change_nothing(clip: Clip) -> None:
    changes: dict[str, Any] = {
        "loss": {"dialogues": 0.2, "denials": 0.5, "conjunctions": 0.3, "truths": 0.4},
        "guard": {"kind": "similarities", "weight": 2.0, "recombined": True},
    }
    objective = PlusObjective(clip, recipe_of(**changes))
    system = moved(clip, objective, changes)
    small = TextTuning(clip, objective, recipe_of(**changes).optim.model_copy(update={"mini_batch_size": 4}))
    found = list[list[Tensor]]()
    for one in (system, small):
        losses = one.module(batch(recipe_of(**changes)))
        assert len(losses) == 7
        values = torch.stack(list(losses.values()))
        found.append([values, *torch.autograd.grad(values.sum(), list(one.trainable.values()))])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vectors", "similarities"])
def test_the_guard_is_zero_until_the_tower_moves(clip: Clip, kind: str) -> None:
    recipe = recipe_of(guard={"kind": kind, "recombined": True})
    system = TextTuning(clip, PlusObjective(clip, recipe), recipe.optim)
    assert float(system.module(batch(recipe))["guard_loss"]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("part", "places"), [("foils", [1, 2]), ("denials", [3, 4]), ("conjunctions", [6, 7, 8])])
def test_a_loss_without_an_example_is_refused(clip: Clip, part: str, places: list[int]) -> None:
    recipe = recipe_of(loss={"denials": 0.5, "conjunctions": 0.3})
    objective, examples = PlusObjective(clip, recipe), batch(recipe)
    objective.require_examples(examples)
    examples.there[:, places] = False
    with pytest.raises(UsageError, match=rf"loss\.{part} has nothing to learn from: of 6 images, none has"):
        objective.require_examples(examples)


@pytest.mark.parametrize("off", [["denials"], ["conjunctions"], ["denials", "conjunctions"], ["foils"]])
def test_a_loss_that_is_switched_off_needs_no_example(clip: Clip, off: list[str]) -> None:
    recipe = recipe_of(loss={"foils": 1.0, "denials": 0.5, "conjunctions": 0.3} | dict.fromkeys(off, 0.0))
    objective, examples = PlusObjective(clip, recipe), batch(recipe)
    objective.require_examples(examples)
    losses = TextTuning(clip, objective, recipe.optim).module(examples)
    assert not any(name.startswith(part.removesuffix("s")) for name in losses for part in off)


def test_frozen_embeddings(clip: Clip) -> None:
    recipe = recipe_of()
    system = TextTuning(clip, PlusObjective(clip, recipe), recipe.optim)
    names = set(system.trainable)
    freeze_embeddings(system)
    assert names - set(system.trainable) == {"token_embedding.weight"}
    assert not clip.model.token_embedding.weight.requires_grad


@pytest.fixture
def plus(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path, run_script: Callable[..., int]) -> Callable[..., int]:
    tables = '[loss]\ndenials = 0.5\n[guard]\nkind = "similarities"\nrecombined = true'
    recipe = write_recipe(tmp_path, tiny_clip, tiny_dialogues, top="save_every_steps = 2", tables=tables)
    return functools.partial(run_script, "draft_plus", "--config", str(recipe))


def changed(tiny_clip: Path, tuned: Path) -> set[str]:
    before, after = (load_clip(str(folder)).model.state_dict() for folder in (tiny_clip, tuned))
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_from_dialogues_to_a_model(plus: Callable[..., int], tmp_path: Path, tiny_clip: Path) -> None:
    assert plus() == 0
    names = changed(tiny_clip, tmp_path / "out" / "model")
    assert {"text_projection", "token_embedding.weight", "transformer.resblocks.0.attn.in_proj_weight"} <= names
    assert not any(name.startswith("visual.") for name in names)
    losses = json.loads((tmp_path / "out" / "train.json").read_text())["losses"]
    assert set(losses) == {"image_caption_loss", "foil_loss", "denial_loss", "guard_loss", "loss"}
    assert plus("--resume", "auto") == 0


def test_parts_share_what_is_derived(plus: Callable[..., int], tmp_path: Path, tiny_clip: Path) -> None:
    assert plus("--set", "guard.freeze_embeddings=true", "--set", "balance=0.5") == 0
    assert "token_embedding.weight" not in changed(tiny_clip, tmp_path / "out" / "model")
    vectors = {file: file.stat().st_mtime_ns for file in (tmp_path / "work" / "vectors").rglob("*.arrow")}
    assert plus("--set", "out=other", "--set", 'texts="question_answer"', "--set", "optim.lora.rank=2") == 0
    assert (tmp_path / "other" / "model" / "adapter" / "adapter_config.json").exists()
    assert {file: file.stat().st_mtime_ns for file in vectors} == vectors
    assert len(list((tmp_path / "work").glob("candidates-*"))) == 2


def test_a_tower_for_questions_only(
    plus: Callable[..., int], tmp_path: Path, tiny_clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert plus() == 0
    assert "guard" not in caplog.text
    assert plus("--set", "out=beside", "--set", "questions_only=true") == 0
    assert "guard.kind=none leaves it out" in caplog.text
    assert changed(tiny_clip, tmp_path / "beside" / "model") == set()
    found = load_clip(str(tmp_path / "beside" / "model"), needs=SEARCH)
    assert isinstance(found, ThirdTowerClip)
    assert found.beta is None
    tuned, texts = load_clip(str(tmp_path / "out" / "model")), ["a red circle", "is there a square? no", ""]
    # The same training gives the same tower, wherever it is kept.
    torch.testing.assert_close(found.for_questions().embed_texts(texts), tuned.embed_texts(texts))
    torch.testing.assert_close(found.embed_texts(texts), load_clip(str(tiny_clip)).embed_texts(texts))
    assert torch.equal(found.with_beta(0.0).embed_texts(texts), found.for_questions().embed_texts(texts))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("foils=0", "foils"),
        ('guard.kind="weights"', "guard.kind"),
        ('dialogues="concatenate"', "dialogues"),
        ("balance=2", "balance"),
        ('texts="labelled"', "texts"),
        ("loss.negation=1", "negation"),
        ("loss={captions=0,foils=0}", "nothing to learn"),
        ("data.kept_only=true", "gate"),
    ],
)
def test_refuses(plus: Callable[..., int], capsys: pytest.CaptureFixture[str], setting: str, said: str) -> None:
    assert plus("--set", setting) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_accelerate")
def test_resumed_equals_undisturbed(tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path) -> None:
    prepare(tmp_path, tiny_clip, tiny_dialogues)
    check_resume("helpers.candidates:train_plus", tmp_path, stop=5)


@pytest.mark.slow
def test_two_processes_give_the_losses_and_gradients_of_one(
    tmp_path: Path, tiny_clip: Path, tiny_dialogues: Path
) -> None:
    prepare(tmp_path, tiny_clip, tiny_dialogues)
    # The guard's loss is a small difference of large numbers.
    check_two_processes("helpers.candidates:train_plus", tmp_path, rounding=1e-6)
