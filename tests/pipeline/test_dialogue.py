import asyncio
import hashlib
import re

import pytest
from helpers.engine import EVERY, NONSENSE, ScriptedEngine, answer_to
from helpers.runs import make_generator
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from dialog_gen.engines.base import EngineDiedError
from dialog_gen.generation.dialogue import Dialogue, DialogueGenerator
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE
from dialog_gen.protocols.protocol import Protocol

SHA = "ab" * 32
SEE, UNIQUE = "What do you see in this image?", "What makes this image unique?"


def dialogue_of(generator: DialogueGenerator, engine: ScriptedEngine, sha256: str = SHA) -> Dialogue:
    return asyncio.run(generator.generate(engine, (Image.new("RGB", (5, 3)),), sha256))


def prompts(generator: DialogueGenerator, *answers: str) -> list[str]:
    """What is asked where these are the answers, in order."""
    given = iter(answers)
    engine = ScriptedEngine(say=lambda request: next(given), chat_template=generator.chat_template or "")
    assert dialogue_of(generator, engine).reason is None
    return [asked.prompt for asked in engine.asked]


def turns(*users: str, context: str = "dialogue") -> Protocol:
    return Protocol.model_validate({"name": "p", "turns": [{"user": user} for user in users], "context": context})


def expected_seed(run_seed: int, sha256: str, attempt: int) -> int:
    digest = hashlib.sha256(b"%d/%s/%d" % (run_seed, sha256.encode(), attempt)).hexdigest()
    return int(digest[:16], 16) // 4


@pytest.mark.parametrize(
    ("template", "first", "second"),
    [
        (
            LLAVA_CHAT_TEMPLATE,
            f"USER: <image>\n{SEE} ASSISTANT:",
            f"USER: <image>\n{SEE} ASSISTANT: A red cat. USER: {UNIQUE} ASSISTANT:",
        ),
        (
            BLIP2_CHAT_TEMPLATE,
            f"Question: {SEE} Answer:",
            f"Question: {SEE} Answer: A red cat. Question: {UNIQUE} Answer:",
        ),
    ],
    ids=["llava", "blip2"],
)
def test_a_later_turn_goes_on_from_the_earlier_ones(template: str, first: str, second: str) -> None:
    generator = make_generator("blip2-two-turn", chat_template=template)
    assert prompts(generator, "A red cat.", "Its hat.") == [first, second]


def test_without_context_a_turn_stands_alone_but_may_name_earlier_texts() -> None:
    protocol = turns(SEE, UNIQUE, "{answer_1} {prompt_2} {answer_2}", context="none")
    assert prompts(make_generator(protocol), "A cat.", "Its hat.", "Yes.") == [
        f"USER: <image>\n{SEE} ASSISTANT:",
        f"USER: <image>\n{UNIQUE} ASSISTANT:",
        f"USER: <image>\nA cat. {UNIQUE} Its hat. ASSISTANT:",
    ]


def test_what_is_kept_of_an_accepted_dialogue() -> None:
    engine = ScriptedEngine()
    dialogue = dialogue_of(make_generator("blip2-two-turn"), engine)
    words = [answer_to(asked) for asked in engine.asked]
    assert [(pair.user, pair.assistant) for pair in dialogue.pairs] == list(zip([SEE, UNIQUE], words, strict=True))
    assert dialogue.raw == tuple(words)
    assert (dialogue.reason, dialogue.detail, dialogue.attempts) == (None, None, 1)
    assert (dialogue.finish_reasons, dialogue.output_tokens) == (("stop", "stop"), sum(len(w.split()) for w in words))
    assert (dialogue.requests, dialogue.prompt_tokens) == (2, sum(len(a.prompt.split()) for a in engine.asked))
    assert engine.sizes == [(5, 3)] * 2


def test_a_list_of_pairs_comes_of_one_answer() -> None:
    dialogue = dialogue_of(make_generator("llava-3qa"), ScriptedEngine())
    lines = [f"{i}. Q: {pair.user} A: {pair.assistant}" for i, pair in enumerate(dialogue.pairs, 1)]
    assert len(lines) == 3
    assert dialogue.raw == ("\n".join(lines),)


@pytest.mark.parametrize("run_seed", [0, 7, 2**40])
@pytest.mark.parametrize("sha256", [SHA, "00" * 32])
def test_seeds_come_of_run_image_attempt_and_turn(run_seed: int, sha256: str) -> None:
    engine = ScriptedEngine(malformed={sha256: [1, 3]})  # turn 1 of the first attempt, turn 2 of the second
    dialogue = dialogue_of(make_generator("blip2-two-turn", run_seed=run_seed), engine, sha256)
    first, second, third = (expected_seed(run_seed, sha256, attempt) for attempt in (1, 2, 3))
    assert [asked.seed for asked in engine.asked] == [first, second, second + 1, third, third + 1]
    assert (dialogue.seed, dialogue.attempts, dialogue.reason) == (third, 3, None)
    assert len({first, second, third}) == 3
    assert all(0 <= seed < 2**62 for seed in (first, second, third))


@pytest.mark.parametrize(("attempts", "temperature", "tried"), [(1, 0.7, 1), (2, 0.7, 2), (5, 1.5, 5), (5, 0, 1)])
def test_attempts_are_bounded_and_greedy_decoding_has_one(attempts: int, temperature: float, tried: int) -> None:
    engine = ScriptedEngine(malformed={SHA: EVERY})
    dialogue = dialogue_of(make_generator(attempts=attempts, temperature=temperature), engine)
    assert len({asked.seed for asked in engine.asked}) == len(engine.asked) == dialogue.attempts == tried
    assert (dialogue.reason, dialogue.pairs, dialogue.raw) == ("no_questions", (), (NONSENSE,))
    assert dialogue.output_tokens == tried  # of every attempt, a word each
    assert dialogue.requests == tried
    assert dialogue.prompt_tokens == sum(len(asked.prompt.split()) for asked in engine.asked)


@pytest.mark.parametrize("bad", range(1, 4))
def test_no_more_attempts_than_needed(bad: int) -> None:
    engine = ScriptedEngine(malformed={SHA: range(1, bad)})
    dialogue = dialogue_of(make_generator(), engine)
    assert (dialogue.attempts, len(engine.asked), dialogue.reason) == (bad, bad, None)
    assert dialogue.seed == engine.asked[-1].seed


def test_a_new_attempt_forgets_the_last() -> None:
    engine = ScriptedEngine(malformed={SHA: [2]})
    dialogue = dialogue_of(make_generator("blip2-two-turn"), engine)
    assert [UNIQUE in asked.prompt for asked in engine.asked] == [False, True, False, True]
    assert engine.asked[2].prompt == engine.asked[0].prompt
    assert dialogue.raw == tuple(answer_to(asked) for asked in engine.asked[2:])
    assert len(dialogue.pairs) == len(dialogue.finish_reasons) == 2


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("knob", "reason", "detail", "answered"),
    [("blind", "image_not_seen", "fewer image tokens", 0), ("refused", "engine_refused", "will not", 1)],
)
def test_what_is_not_seen_or_refused_is_final(number: int, knob: str, reason: str, detail: str, answered: int) -> None:
    engine = ScriptedEngine(**{knob: {SHA: [number]}})
    dialogue = dialogue_of(make_generator("blip2-two-turn"), engine)
    assert (dialogue.reason, dialogue.pairs, dialogue.attempts) == (reason, (), 1)
    assert detail in (dialogue.detail or "")
    assert len(engine.asked) == number
    assert dialogue.raw == tuple(answer_to(asked) for asked in engine.asked[: number - answered])


def test_an_image_that_was_not_seen_is_never_accepted() -> None:
    for number in range(1, 7):
        # Not even where another attempt would see it.
        engine = ScriptedEngine(malformed={SHA: [2]}, blind={SHA: [number]})
        accepted = dialogue_of(make_generator("blip2-two-turn"), engine).reason is None
        assert accepted == (number > len(engine.asked))


def test_a_dead_engine_is_no_outcome_of_an_image() -> None:
    with pytest.raises(EngineDiedError):
        dialogue_of(make_generator(), ScriptedEngine(dies_after=0))


OWN = ("<row_1_col_2>", "[control_8]", "<|a-b|>", "<row_1>")
SPECIAL = re.compile(r"</?s>|<pad>|<unk>|<image>|<\|\w+\|>|" + "|".join(map(re.escape, OWN)))
WORDS = ("A cat", " ", "\n", ".", "**", "*", "?", "`", "\x00", "\u200b", "USER:", "1. ", "Q: What? ", "A: No. ")
TOKENS = ("<", ">", "</", "s>", "<s>", "</s>", "im", "age>", "<image>", "<pad>", "<|", "im_end", "|>", "<|im_end|>")
OWN_PIECES = (*OWN, "<row_", "1_col_2>", "1>", "[con", "trol_8]", "a-b")
PIECES = st.lists(st.sampled_from(WORDS + TOKENS + OWN_PIECES), max_size=12).map("".join)


@example(answers=["s>", "image"], context="dialogue", as_list=False)  # "<{answer_1}>" makes a token of it
@example(answers=["A cat <**image>", "A </**s>"], context="dialogue", as_list=False)  # taking out bold makes one
@example(answers=["Q: What? A: Red. <image> </s>", "No </s>"], context="none", as_list=True)
@example(answers=["a red star[control_8] [control_8]", "A <row_<row_1>1_col_2>"], context="dialogue", as_list=False)
@example(answers=["Q: What <row_1_col_2>? A: Red <|a-**b|>", "No"], context="dialogue", as_list=True)
@example(answers=['[{"question": "X?", "answer": "Red \\u003crow_1>"}]', "No"], context="dialogue", as_list=True)
@given(
    answers=st.lists(PIECES, min_size=2, max_size=2),
    context=st.sampled_from(["dialogue", "none"]),
    as_list=st.booleans(),
)
def test_special_tokens_of_an_answer_reach_no_prompt(answers: list[str], context: str, as_list: bool) -> None:
    protocol = Protocol.model_validate(
        {
            "name": "p",
            "turns": [
                {"user": "See?", **({"parse": "qa-list", "pairs": 1} if as_list else {})},
                {"user": "Why <{answer_1}>?"},
                {"user": "{answer_2}{answer_1} {prompt_2}"},
            ],
            "context": context,
        }
    )
    given = iter([*answers, "Yes."])
    engine = ScriptedEngine(say=lambda request: next(given) or "...")
    dialogue = dialogue_of(make_generator(protocol, attempts=1, special_tokens=OWN), engine)
    for asked in engine.asked:
        assert SPECIAL.findall(asked.prompt) == ["<image>"]  # the template's own
    for pair in dialogue.pairs:
        assert not SPECIAL.search(pair.user + pair.assistant)


def test_an_answer_ends_where_the_model_wrote_a_special_token_of_its_own() -> None:
    answers = iter(["<row_1> A star. <row_1_col_2> Who asks?", "Q: What? A: Red. [control_8]\nQ: Who? A: I."])
    engine = ScriptedEngine(say=lambda request: next(answers))
    protocol = Protocol.model_validate(
        {"name": "p", "turns": [{"user": "See?"}, {"user": "Ask.", "parse": "qa-list", "pairs": 1}]}
    )
    dialogue = dialogue_of(make_generator(protocol, attempts=1, special_tokens=OWN), engine)
    assert [(pair.user, pair.assistant) for pair in dialogue.pairs] == [("See?", "A star."), ("What?", "Red.")]


def test_the_prompts_hash_covers_template_and_protocol() -> None:
    base = make_generator("llava-3qa")
    same = [make_generator("llava-3qa", run_seed=1), make_generator("llava-3qa", temperature=0, attempts=1)]
    others = [make_generator("blip2-two-turn"), make_generator("llava-3qa", chat_template=BLIP2_CHAT_TEMPLATE)]
    assert {generator.prompt_sha256 for generator in same} == {base.prompt_sha256}
    assert len({generator.prompt_sha256 for generator in [base, *others]}) == 3


def test_the_same_again() -> None:
    first, second = ScriptedEngine(), ScriptedEngine()
    assert dialogue_of(make_generator("blip2-two-turn"), first) == dialogue_of(make_generator("blip2-two-turn"), second)
    assert first.asked == second.asked
    assert len(first.asked) == 2
