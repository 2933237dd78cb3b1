from pathlib import Path
from typing import Any

import pytest

from dialog_gen.core.errors import UsageError
from dialog_gen.protocols.protocol import Protocol, Sampling, load_protocol, shipped_protocols


def write(folder: Path, text: str) -> str:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def turn(user: str, **fields: Any) -> dict[str, Any]:
    return {"user": user, **fields}


def protocol(*turns: dict[str, Any], name: str = "p", **fields: Any) -> Protocol:
    return Protocol.model_validate({"name": name, "turns": turns, **fields})


@pytest.mark.parametrize(("name", "turns", "pairs"), [("blip2-two-turn", 2, 2), ("llava-3qa", 1, 3)])
def test_shipped(name: str, turns: int, pairs: int) -> None:
    loaded = load_protocol(name)
    assert (loaded.name, len(loaded.turns), loaded.pairs, loaded.context) == (name, turns, pairs, "dialogue")


def test_every_shipped_file_loads() -> None:
    assert [load_protocol(name).name for name in shipped_protocols()] == list(shipped_protocols())


def test_a_users_file_is_named_after_itself_unless_it_names_itself(tmp_path: Path) -> None:
    file = write(tmp_path, '[[turns]]\nuser = "What is {{this}}?"\n')
    assert load_protocol(file).name == "mine"
    other = tmp_path / "other.toml"
    other.write_text('name = "own"\n' + Path(file).read_text(encoding="utf-8"), encoding="utf-8")
    assert load_protocol(str(other)).name == "own"


TURN = '[[turns]]\nuser = "?"\n'
MISTAKES = {
    "not toml": ("turns = [", "is not valid TOML"),
    "not utf-8": ("\udcff", "is not valid TOML"),
    "empty": ("", "turns: Field required"),
    "no turn": ("turns = []", "turns: Tuple should have at least 1 item"),
    "key": (f"contxt = 1\n{TURN}", "contxt: unknown key; did you mean 'context'"),
    "key of a turn": (f"{TURN}pars = 1", "turns.1.pars: unknown key; did you mean 'parse'"),
    "key of sampling": (f"{TURN}[sampling]\ntemprature = 1", "sampling.temprature: unknown key; did you mean 'temper"),
    "sampling is no table": (f"sampling = 0.7\n{TURN}", "sampling: a table is needed, got 0.7"),
    "out of range": (
        f"{TURN}[sampling]\ntop_p = 1.5",
        "sampling.top_p: must be at most 1, got 1.5",
    ),
    "choice": (f"{TURN}parse = 'list'", "turns.1.parse: must be 'answer' or 'qa-list', got 'list'"),
    "empty text": (f"{TURN}[[turns]]\nuser = ''", "turns.2.user: String should have at least 1 character, got ''"),
    "white space": (
        "[[turns]]\nuser = ' \t '",
        r"turns.1.user: holds nothing but white space: write what is said, got ' \\t '$",
    ),
    "a number of turns": ("turns = 3", "turns: must be a list"),
    "nothing visible": (
        f"{TURN}[[turns]]\nuser = '\u200b\u00a0'",
        "turns.2.user: holds nothing but white space",
    ),
    "white space of the system": (f"system = ' '\n{TURN}", "system: holds nothing but white space"),
    "image in a text": (
        "[[turns]]\nuser = 'Is <image> red?'",
        "turns.1.user: remove <image>: the model's chat template puts the image",
    ),
    "pairs of an answer": (f"{TURN}pairs = 3", 'turns.1: pairs = 3 needs parse = "qa-list"'),
    "two mistakes": ("a = 1\nb = 2", "a: unknown key.*b: unknown key"),
}


# What a column of the dataset cannot hold, or what no engine can sample with.
BAD_SAMPLING = {
    f"{key} = {value}": (f"{TURN}[sampling]\n{key} = {value}", f"sampling.{key}: .*{said}")
    for key, value, said in (
        ("top_k", "3000000000", "must be at most 1000000, got 3000000000"),
        ("top_k", "99999999999999999999", "must be at most 1000000"),
        ("top_k", "-1", "must be at least 0"),
        ("max_tokens", "3000000000", "must be at most 8192"),
        ("repetition_penalty", "1e-300", "must be at least 0.1"),
        ("repetition_penalty", "nan", "got nan"),
        ("temperature", "1e-300", "0, which takes the most likely token, or at least 0.01"),
        ("temperature", "inf", "must be at most 2"),
        ("top_p", "1e-300", "must be at least 1e-06"),
    )
}


@pytest.mark.parametrize("name", [*MISTAKES, *BAD_SAMPLING])
def test_mistakes_are_explained(tmp_path: Path, name: str) -> None:
    text, message = (MISTAKES | BAD_SAMPLING)[name]
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=f"protocol file .*mine.toml.*{message}"):
        load_protocol(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lava-3qa", "unknown protocol 'lava-3qa': did you mean 'llava-3qa'. Known: blip2-two-turn, .*llava-3qa"),
        ("zzz", "unknown protocol 'zzz': Known: .* or give a .toml file"),
        ("no/such.toml", "protocol file no/such.toml: No such file"),
        (".", "unknown protocol"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_protocol(name)


def test_a_folder_is_no_protocol(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        load_protocol(str(tmp_path / "folder.toml"))


@pytest.mark.parametrize(
    "placeholder",
    [
        "{answer_2}",  # this turn's own
        "{answer_3}",
        "{answer_0}",
        "{caption}",
        "{}",
        "{0}",
        "{0.__class__}",
        "{answer_1.__class__}",
        "{answer_1[0]}",
        "{answer_1!r}",
        "{answer_1:>99999999}",
        "{answer_1:{caption}}",
        "{ answer_1 }",
    ],
)
def test_only_the_names_of_earlier_turns_are_placeholders(tmp_path: Path, placeholder: str) -> None:
    file = write(tmp_path, f'{TURN}[[turns]]\nuser = "Why {placeholder}?"\n')
    with pytest.raises(UsageError) as caught:
        load_protocol(file)
    assert f"turn 2: unknown placeholder {placeholder}. A turn may use {{prompt_1}}, {{answer_1}}" in str(caught.value)


def test_the_first_turn_has_no_placeholders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"turn 1: unknown placeholder \{answer_1\}.*there is no earlier turn"):
        load_protocol(write(tmp_path, '[[turns]]\nuser = "{answer_1}"\n'))


@pytest.mark.parametrize("user", ["a { b", "a } b", "{", "{answer_1"])
def test_a_lone_brace_is_explained(tmp_path: Path, user: str) -> None:
    with pytest.raises(UsageError, match=r"Write \{\{ and \}\} for braces"):
        load_protocol(write(tmp_path, f'[[turns]]\nuser = "{user}"\n'))


def test_later_turns_hold_earlier_texts() -> None:
    chained = protocol(
        turn("Look {{here}}."), turn("{prompt_1} {answer_1}?"), turn("{answer_2}, {answer_1}, {prompt_2}")
    )
    prompts = [chained.user_text(0, [], [])]
    assert prompts == ["Look {here}."]
    prompts.append(chained.user_text(1, prompts, ["A cat"]))
    assert prompts[1] == "Look {here}. A cat?"
    assert chained.user_text(2, prompts, ["A cat", "Yes"]) == "Yes, A cat, Look {here}. A cat?"


@pytest.mark.parametrize(
    "answer", ["{answer_1}", "{prompt_1}", "{0.__class__}", "{", "}}", "{{x}}", "%s \\1 {answer_1"]
)
def test_an_answer_goes_in_as_it_is(answer: str) -> None:
    chained = protocol(turn("Q"), turn("<{answer_1}>"), turn("{prompt_2}|{answer_2}"))
    second = chained.user_text(1, ["Q"], [answer])
    assert second == f"<{answer}>"
    assert chained.user_text(2, ["Q", second], [answer, answer]) == f"<{answer}>|{answer}"


def test_the_hash_is_of_what_shapes_prompts_and_parsing() -> None:
    base = protocol(turn("Q"), turn("R"))
    same = [
        protocol(turn("Q"), turn("R"), name="other", description="d"),
        protocol(turn("Q"), turn("R"), sampling={"temperature": 0, "max_tokens": 9}),
        protocol(turn("Q", parse="answer", pairs=1), turn("R"), context="dialogue"),
    ]
    others = [
        protocol(turn("Q")),
        protocol(turn("R"), turn("Q")),
        protocol(turn("Q"), turn("R ")),
        protocol(turn("Q"), turn("R", parse="qa-list")),
        protocol(turn("Q"), turn("R", parse="qa-list", pairs=2)),
        protocol(turn("Q"), turn("R"), context="none"),
    ]
    assert {p.sha256 for p in same} == {base.sha256}
    assert len({p.sha256 for p in [base, *others]}) == 1 + len(others)


def test_new_settings_are_recorded_only_if_they_change_something() -> None:
    """Datasets that were made before these settings existed stay the same configuration."""
    assert Sampling(temperature=0.5).recorded() == {"temperature": 0.5, "top_p": 1.0, "max_tokens": 256}
    changed = Sampling(top_k=5, repetition_penalty=1.1, stop=("\n\n",))
    assert changed.recorded() == {
        "temperature": 0.7,
        "top_p": 1.0,
        "max_tokens": 256,
        "top_k": 5,
        "repetition_penalty": 1.1,
        "stop": ["\n\n"],
    }
