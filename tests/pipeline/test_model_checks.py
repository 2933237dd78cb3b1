"""What is refused before an engine starts."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.model_folders import BLIP2, LLAVA, TOKENIZER, model_folder, weights
from PIL import Image

from dialog_gen import generate
from dialog_gen.core.errors import UsageError
from dialog_gen.engines.base import ENGINES, EngineOptions
from dialog_gen.models.checks import check_prompts, check_several_images
from dialog_gen.models.context import check_context, check_given, fitting_context, needed
from dialog_gen.models.registry import MODELS, GeneratorModel, remote_model, resolve_model
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE, PALIGEMMA_CHAT_TEMPLATE
from dialog_gen.protocols.protocol import Protocol, conversation, load_protocol

TWO_TURNS = load_protocol("blip2-two-turn")
LOOP = "{% for m in messages %}{% for c in m['content'] %}"
ENDS = "{% endfor %}{% endfor %}"


def with_template(folder: Path, template: str, config: Any = LLAVA, **files: str | None) -> GeneratorModel:
    return resolve_model(str(model_folder(folder, config, chat_template__jinja=template, **files)))


LOSING = {
    "old Pixtral": (
        LOOP + "{% if c['type'] == 'text' %}{{ c['content'] }}{% else %}<image>{% endif %}" + ENDS,
        "holds the question not at all",
    ),
    "image_url only": (
        LOOP
        + "{% if c['type'] == 'text' %}{{ c['text'] }}{% elif c['type'] == 'image_url' %}<image>{% endif %}"
        + ENDS,
        "no placeholder for the image",
    ),
    "image forgotten": (LOOP + "{{ c['text'] }}" + ENDS, "no placeholder"),
    "image twice": (
        LOOP + "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<image><image>{% endif %}" + ENDS,
        "<image> 2 times",
    ),
    "image at each turn": (
        LOOP.replace("{% for c", "{% if m['role'] == 'user' %}<image>{% endif %}{% for c") + "{{ c['text'] }}" + ENDS,
        "prompt of question 2 holds <image> 2 times for one image",
    ),
    "last turn only": (
        "<image>{{ messages[-1]['content'][-1]['text'] }}",
        "holds the first question not at all",
    ),
    "question twice": (
        LLAVA_CHAT_TEMPLATE + "{{ messages[0]['content'][1]['text'] }}",
        "holds the question 2 times",
    ),
    "answers dropped": (
        LOOP + "{% if m['role'] == 'user' %}{{ c['text'] or '<image>' }}{% endif %}" + ENDS,
        "holds the earlier turns not at all",
    ),
    "cuts": (
        LLAVA_CHAT_TEMPLATE.replace("content['text'] +", "content['text'][:40] +"),
        "cuts or changes the question",
    ),
    "cuts at 900": (LLAVA_CHAT_TEMPLATE.replace("content['text'] +", "content['text'][:900] +"), "cuts or changes"),
    **{
        changed: (LLAVA_CHAT_TEMPLATE.replace("content['text'] +", f"{changed} +"), "cuts or changes the question")
        for changed in (
            "content['text'][:40]",
            "content['text'][:900]",
            "content['text'].upper()",
            "content['text'] | lower",
            "content['text'] | capitalize",
            "content['text'].split() | join(' ')",
            "content['text'].replace('\\n', ' ')",
            "content['text'] | escape",
            "content['text'] | e | string",
            "content['text'] | tojson",
            "content['text'] | replace('\\n\\n', '\\n')",
            "content['text'] | truncate(300)",
            "content['text'] | wordwrap(60)",
            "content['text'].encode('ascii', 'ignore').decode()",
            "content['text'].split('\\n')[0]",
            "(content['text'] | urlencode)",
        )
    },
    "refuses a second turn": (
        LLAVA_CHAT_TEMPLATE + "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}",
        "fails at question 2: one turn",
    ),
}


@pytest.mark.parametrize("name", LOSING)
def test_a_template_that_loses_something_is_refused_with_its_prompt(tmp_path: Path, name: str) -> None:
    template, message = LOSING[name]
    model = with_template(tmp_path / "mine", template)
    with pytest.raises(UsageError, match=rf"chat template of mine .*({message})"):
        check_prompts(model, TWO_TURNS)


def test_the_prompt_is_shown(tmp_path: Path) -> None:
    model = with_template(tmp_path / "mine", "<image>Describe it.")
    with pytest.raises(UsageError, match=r"It would be '<image>Describe it\.'"):
        check_prompts(model)


@pytest.mark.parametrize(
    ("template", "config", "protocol"),
    [
        (LLAVA_CHAT_TEMPLATE, LLAVA, TWO_TURNS),
        (BLIP2_CHAT_TEMPLATE, BLIP2, TWO_TURNS),
        (PALIGEMMA_CHAT_TEMPLATE, LLAVA | {"model_type": "paligemma"}, load_protocol("paligemma-questions")),
    ],
)
def test_templates_that_hold_everything(tmp_path: Path, template: str, config: Any, protocol: Protocol) -> None:
    check_prompts(with_template(tmp_path / "mine", template, config), protocol)


ONE_FOR_ALL = "{% for m in messages %}{% if loop.first %}<image>{% endif %}"
EACH = "{{ '<image>' if c['type'] == 'image' else c['text'] }}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LOOP + EACH + ENDS, None),
        ("{{ bos_token }}" + LOOP + EACH + ENDS, None),
        # one mark before all images
        (LOOP + "{% if c['type'] == 'image' and loop.first %}[IMG]{% endif %}" + EACH + ENDS, None),
        # one placeholder for any number, only the first image, none, or each of them twice
        (ONE_FOR_ALL + "{{ m['content'][-1]['text'] }}{% endfor %}", "holds no placeholder for each image"),
        (LOOP + EACH.replace("'image' else", "'image' and loop.first else") + ENDS, "holds <image> once for 2 images"),
        (LOOP + "{{ c['text'] }}" + ENDS, "holds no placeholder for each image"),
        (LOOP + EACH.replace("'<image>'", "'<image><image>'") + ENDS, "holds <image> 4 times for 2 images"),
    ],
)
def test_a_prompt_holds_each_of_several_images_once(tmp_path: Path, template: str, message: str | None) -> None:
    tokens = json.dumps({"bos_token": "<s>", "x_token": "[IMG]"})
    model = with_template(
        tmp_path / "mine", template, LLAVA | {"model_type": "idefics3"}, tokenizer_config__json=tokens
    )
    if message is None:
        check_prompts(model, TWO_TURNS, images=2)
    else:
        with pytest.raises(UsageError, match=message):
            check_prompts(model, TWO_TURNS, images=2)


@pytest.mark.parametrize(
    ("config", "takes"),
    [
        (LLAVA, False),
        (LLAVA | {"vision_config": {"model_type": "clip_vision_model"}}, False),
        (LLAVA | {"vision_config": {"model_type": "pixtral"}}, True),
        (LLAVA | {"vision_config": {"model_type": "siglip_vision_model"}}, True),
        (LLAVA | {"model_type": "llava_next"}, False),
        (LLAVA | {"model_type": "llava_onevision"}, True),
        (LLAVA | {"model_type": "qwen2_5_vl"}, True),
        (LLAVA | {"model_type": "mistral3"}, True),
        (BLIP2, False),
    ],
)
def test_models_that_were_made_for_one_image(tmp_path: Path, config: Any, takes: bool) -> None:
    model = resolve_model(str(model_folder(tmp_path / "mine", config)))
    message = r"mine \(.*\) was made for one image in a prompt\. Choose" if not takes else "the processor of mine fails"
    with pytest.raises(UsageError, match=f"--images-per-sample all: {message}"):  # the folder has no processor
        check_several_images(model)


def test_a_template_may_write_the_placeholder_by_itself(tmp_path: Path) -> None:
    check_prompts(with_template(tmp_path / "mine", "USER: <image>\n{{ messages[0]['content'][-1]['text'] }}"))


def test_paligemma_takes_single_questions(tmp_path: Path) -> None:
    model = with_template(tmp_path / "mine", PALIGEMMA_CHAT_TEMPLATE, LLAVA | {"model_type": "paligemma"})
    with pytest.raises(UsageError, match=r'fails at question 2: .*choose a protocol with context = "none"'):
        check_prompts(model, TWO_TURNS)


TOKENS = json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "image_token": "[IMG]"})


def test_a_template_has_the_tokens_of_its_tokenizer(tmp_path: Path) -> None:
    template = (
        "{{ bos_token + '' }}" + LOOP + "{{ c['text'] or image_token }}{% endfor %}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    model = with_template(tmp_path / "mine", template, tokenizer_config__json=TOKENS)
    check_prompts(model, TWO_TURNS)
    assert model.render(conversation("a", "b", "c")) == "<s>[IMG]ab</s>c"


def test_what_a_model_wrote_is_no_special_token(tmp_path: Path) -> None:
    """`<<s>image>` must not become an image when the inner token is removed."""
    model = with_template(
        tmp_path / "mine",
        LLAVA_CHAT_TEMPLATE,
        tokenizer_config__json=json.dumps({"bos_token": "<s>", "x_token": "[IMG]"}),
    )
    prompt = model.render(conversation("a", "see [IMG] and <image> and <<s>image> <i<image>mage>", "b"))
    assert prompt.count("<image>") == 1
    assert "[IMG]" not in prompt
    assert "<s>" not in prompt


@pytest.mark.parametrize(
    "stored",
    [
        [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": LLAVA_CHAT_TEMPLATE}],
        {"default": LLAVA_CHAT_TEMPLATE, "rag": "{{ documents }}"},
    ],
)
def test_of_several_templates_the_default_is_used(tmp_path: Path, stored: Any) -> None:
    folder = model_folder(
        tmp_path / "mine", chat_template__jinja=None, tokenizer_config__json=json.dumps({"chat_template": stored})
    )
    assert resolve_model(str(folder)).chat_template == LLAVA_CHAT_TEMPLATE


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "named templates without a default": (
        {
            "chat_template__jinja": None,
            "tokenizer_config__json": json.dumps({"chat_template": [{"name": "rag", "template": "x"}]}),
        },
        "has chat templates named rag, and none named default",
    ),
    "text only": (
        {"config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 5}},
        r"\(llama\) is a model for text alone",
    ),
    "text only, encoder-decoder": (
        {"config": {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True}},
        r"\(t5\) is a model for text alone",
    ),
    "code of its own": (
        {
            "config": {
                "architectures": ["InternVLChatModel"],
                "model_type": "internvl_chat",
                "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
                "vision_config": {},
            }
        },
        "needs code from its repository, which is never run.* -hf",
    ),
    "a part of the weights is missing": (
        {"model__safetensors": None, "model-1__safetensors": weights(), "model__safetensors__index__json": INDEX},
        "lacks 1 of its 2 files of weights, such as model-2.safetensors",
    ),
    "weights of 0 bytes": ({"model__safetensors": ""}, "model.safetensors is no whole safetensors file .*fetch it"),
    "cut weights": ({"model__safetensors": weights("w" * 99)[:-1]}, "model.safetensors is no whole safetensors file"),
    "weights that are none": ({"model__safetensors": "<html>"}, "model.safetensors is no whole safetensors file"),
    "weights without tensors": (
        {"model__safetensors": "\2" + 7 * "\0" + "{}"},
        r"model.safetensors is no whole safetensors file \(it has no tensors\)",
    ),
    "a cut part of the weights": (
        {
            "model__safetensors": None,
            "model-1__safetensors": weights(name="a"),
            "model-2__safetensors": weights(name="b")[:-1],
            "model__safetensors__index__json": INDEX,
        },
        "model-2.safetensors is no whole safetensors file",
    ),
    "an index of other weights": (
        {
            "model__safetensors": None,
            "model-1__safetensors": weights(name="a"),
            "model-2__safetensors": weights(name="c"),
            "model__safetensors__index__json": INDEX,
        },
        r"model-2.safetensors is no whole safetensors file \(it lacks the tensor b of the index\)",
    ),
    "no tokenizer": ({"tokenizer__json": None}, "has no tokenizer.json, nor another vocabulary"),
    "a tokenizer of 0 bytes": (
        {"tokenizer__json": "", "tokenizer_config__json": '{"added_tokens_decoder": {"0": {"content": "a"}}}'},
        "has no tokenizer.json, nor another vocabulary",
    ),
    "an unknown architecture": (
        {"config": LLAVA | {"model_type": "llava_of_2099"}},
        r"\(llava_of_2099\): the installed transformers has no such model_type",
    ),
    "no architecture": (
        {"config": {"architectures": LLAVA["architectures"], "vision_config": {}}},
        r"\(no model_type\): the installed transformers has no such model_type",
    ),
    "a template that takes all memory": (
        {"chat_template__jinja": "{{ 'a' * 10**10 }}"},
        "takes more than 5 seconds or 512 MiB",
    ),
    "the same in an answer that trainers mark": (
        {"chat_template__jinja": "{% generation %}{{ ('a' * 10**10) | length }}{% endgeneration %}"},
        "takes more than 5 seconds or 512 MiB",
    ),
    "a template that doubles a text": (
        {
            "chat_template__jinja": "{% set ns = namespace(x='aa') %}{% for i in range(64) %}"
            "{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
        },
        "takes more than 5 seconds or 512 MiB",
    ),
    **{
        f"a template with {changing}": (
            {"chat_template__jinja": LLAVA_CHAT_TEMPLATE + changing},
            "writes the time of day or something random into the prompt",
        )
        for changing in (
            "{{ ['a', 'b'] | random }}",
            "{{ [[1], [2]] | random | first }}",
            "{{ lipsum(n=1) }}",
            "{{ strftime_now('%H') }}",
            "{{ strftime_now('%d %f') }}",
            "{% if messages | length > 20 %}{{ strftime_now('%M') }}{% endif %}",
        )
    },
    "a template that renders a book": (
        {"chat_template__jinja": LLAVA_CHAT_TEMPLATE + "{{ 'a' * 3000000 }}"},
        "more than 1048576 characters",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_folders_that_no_engine_can_use(tmp_path: Path, name: str) -> None:
    files, message = REFUSED[name]
    folder = model_folder(tmp_path / "mine", **files)
    with pytest.raises(UsageError, match=f"mine.*{message}"):
        resolve_model(str(folder))


def test_a_template_may_write_the_date(tmp_path: Path) -> None:
    """Released ones do, such as that of Mistral Small 3.1."""
    model = with_template(tmp_path / "mine", LLAVA_CHAT_TEMPLATE + "{{ strftime_now('%d %B %Y') }}")
    check_prompts(model, TWO_TURNS)


@pytest.mark.slow
def test_a_template_that_never_ends_is_refused(tmp_path: Path) -> None:
    """Within seconds of work, however busy the machine is."""
    loops = [f"{{% for x{n} in range(99999) %}}" for n in range(3)]
    template = "".join(loops) + "{% endfor %}" * 3
    with pytest.raises(UsageError, match="takes more than 5 seconds"):
        with_template(tmp_path / "mine", template)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = model_folder(
        tmp_path / "mine",
        tokenizer__json=TOKENIZER[:-1],
        tokenizer_config__json='{"added_tokens_decoder": {"0": {"content": "a"}}}',
    )
    with pytest.raises(UsageError, match=r"tokenizer\.json is no whole tokenizer .*fetch it again"):
        check_prompts(resolve_model(str(folder)), TWO_TURNS)


@pytest.mark.parametrize("token_id", [-1, 1, 10**12])
@pytest.mark.parametrize("key", ["image_token_id", "image_token_index"])
def test_the_image_must_be_a_token(tmp_path: Path, key: str, token_id: int) -> None:
    known = with_template(tmp_path / "known", LLAVA_CHAT_TEMPLATE, LLAVA | {key: 0})
    check_prompts(known, TWO_TURNS)
    model = with_template(tmp_path / "mine", LLAVA_CHAT_TEMPLATE, LLAVA | {key: token_id})
    with pytest.raises(UsageError, match=rf"config\.json: {key} = {token_id} is no token of the tokenizer"):
        check_prompts(model, TWO_TURNS)


def test_the_token_of_the_image_is_special_also_if_the_tokenizer_does_not_say_so(tmp_path: Path) -> None:
    added = {"0": {"content": "<pic>", "special": False}, "7": {"content": "<think>", "special": False}}
    model = with_template(
        tmp_path / "mine",
        LLAVA_CHAT_TEMPLATE.replace("<image>", "<pic>"),
        LLAVA | {"image_token_id": 0},
        tokenizer_config__json=json.dumps({"added_tokens_decoder": added}),
    )
    assert model.placeholder == "<pic>"
    check_prompts(model, TWO_TURNS)
    assert model.render(conversation("a", "see <pic> <think>", "b")).count("<pic>") == 1
    assert "<think>" not in model.tokens.texts


LONG = LLAVA | {"text_config": {"max_position_embeddings": 32768}, "image_seq_length": 576}


def test_the_context_fits_the_protocol_and_the_model(tmp_path: Path) -> None:
    # A tokenizer whose tokens are not counted: half as many as characters are assumed.
    other: Any = {"tokenizer__json": None, "tokenizer__model": "x"}
    model = with_template(tmp_path / "long", LLAVA_CHAT_TEMPLATE, LONG, **other)
    wanted = needed(model, TWO_TURNS, max_tokens=1000)
    # Two answers of 1,000 tokens, the image, and two short questions.
    assert 2576 < wanted.whole < 2700
    assert 1576 < wanted.first < 1640
    assert fitting_context(model, wanted) == 3072
    short = with_template(
        tmp_path / "short", LLAVA_CHAT_TEMPLATE, LONG | {"text_config": {"max_position_embeddings": 2048}}, **other
    )
    assert fitting_context(short, wanted) == 2048
    check_context(short, wanted, 2048)
    with pytest.raises(
        UsageError, match=r"\(576 tokens\).* up to 16\d\d tokens, more than long's context of 1024: give a"
    ):
        check_context(model, wanted, 1024)


ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({}, 2048),  # transformers' default for a Llama
        ({"max_position_embeddings": 2048, "rope_scaling": ROPE}, 8192),
    ],
)
def test_a_context_is_not_longer_than_the_models_own(tmp_path: Path, text: dict[str, Any], longest: int) -> None:
    config = LLAVA | {"text_config": {"model_type": "llama", **text}}
    model = with_template(tmp_path / "mine", LLAVA_CHAT_TEMPLATE, config)
    check_given(model, longest)
    with pytest.raises(UsageError, match=rf"--max-model-len {longest + 1} is more than mine's own context of 2048"):
        check_given(model, longest + 1)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"turns": [{"user": "What?"}, {"user": "<|im_end|>"}]}, "turns.2.user"),
        ({"turns": [{"user": "Is it <|im_end|> red?"}]}, "turns.1.user"),
        ({"turns": [{"user": "What?"}], "system": "Be <|im_end|>."}, "system"),
        ({"turns": [{"user": "a"}], "examples": [{"user": "b", "assistant": "<|im_end|>"}]}, "examples.1.assistant"),
        ({"turns": [{"user": "a"}], "statement": {"user": "{question} {answer}<|im_end|>"}}, "statement.user"),
    ],
)
def test_a_protocol_has_no_special_token_of_the_model(tmp_path: Path, content: dict[str, Any], place: str) -> None:
    """It would be removed from every prompt, which then says something else."""
    added = json.dumps({"added_tokens_decoder": {"0": {"content": "<|im_end|>", "special": True}}})
    protocol = Protocol.model_validate({"name": "mine", **content})
    model = with_template(tmp_path / "chatml", LLAVA_CHAT_TEMPLATE, tokenizer_config__json=added)
    with pytest.raises(UsageError, match=rf"protocol mine: {place} has <\|im_end\|>, a special token of chatml"):
        check_prompts(model, protocol)


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_a_smolvlm_needs_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "dialog_gen.models.architectures.find_spec", lambda name: None if name == "num2words" else find(name)
    )
    model = with_template(tmp_path / "mine", LLAVA_CHAT_TEMPLATE, LLAVA | {"model_type": "smolvlm"})
    with pytest.raises(UsageError, match=r"a SmolVLM such as mine needs an extra .*\[smolvlm\]"):
        ENGINES.get(engine).check(model, EngineOptions())


@pytest.mark.parametrize(
    ("config", "files"),
    [
        (LLAVA | {"architectures": [1]}, {}),
        (LLAVA | {"architectures": "LlavaForConditionalGeneration"}, {}),
        (LLAVA | {"text_config": None}, {}),
        (LLAVA | {"vision_config": [1]}, {}),
        (LLAVA | {"model_type": ["llava"]}, {}),
        (LLAVA, {"tokenizer_config__json": '{"added_tokens_decoder": {"x": {"content": "a", "special": true}}}'}),
        (LLAVA, {"tokenizer_config__json": '{"added_tokens_decoder": {"1": "<a>"}}'}),
        (LLAVA, {"tokenizer__json": '{"added_tokens": 5}'}),
        (LLAVA, {"chat_template__jinja": "{{ 1 / 0 }}"}),
        (LLAVA, {"chat_template__jinja": "{{ messages[0]['content'].index('x') }}"}),
        (LLAVA, {"chat_template__jinja": None, "tokenizer_config__json": '{"chat_template": ["a"]}'}),
        (LLAVA | {"model_type": "qwen2_vl"}, {"preprocessor_config__json": '{"image_processor": "x"}'}),
    ],
)
def test_damaged_folders_are_refused_in_one_line(tmp_path: Path, config: Any, files: dict[str, str | None]) -> None:
    with pytest.raises(UsageError) as raised:
        resolve_model(str(model_folder(tmp_path / "mine", config, **files)))
    assert "\n" not in str(raised.value)


THINKING = LLAVA_CHAT_TEMPLATE + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
SWITCHED = LLAVA_CHAT_TEMPLATE + "{% if enable_thinking is false %}{{ '<think></think>' }}{% endif %}"
THOUGHTLESS = LLAVA_CHAT_TEMPLATE + "{{ '<think>\n\n</think>\n\n' }}"


@pytest.mark.parametrize(
    ("template", "thinks"),
    [(THINKING, True), (SWITCHED, True), (THOUGHTLESS, False), (LLAVA_CHAT_TEMPLATE, False)],
)
def test_a_model_that_thinks_has_room_for_it(tmp_path: Path, template: str, thinks: bool) -> None:
    folder = shutil.copytree(MODELS.get("shapes-llava").folder or "", tmp_path / "mine")
    (folder / "chat_template.jinja").write_text(template)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 8192
    (folder / "config.json").write_text(json.dumps(config))
    model = resolve_model(str(folder))
    assert model.thinks is thinks
    assert model.sampling_of(TWO_TURNS).max_tokens == TWO_TURNS.sampling.max_tokens + 4096 * thinks
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 8)).save(images / "a.png")
    call: dict[str, Any] = {
        "model": str(model.folder),
        "images": images,
        "out": tmp_path / "out",
        "engine": "transformers",
    }
    call |= {"protocol": "blip2-two-turn", "dry_run": True}
    config = generate(**call).summary["config"]
    assert config["max_tokens"] == TWO_TURNS.sampling.max_tokens + 4096 * thinks
    assert generate(**call, max_tokens=99).summary["config"]["max_tokens"] == 99


def test_a_registered_model_that_thinks_has_room_at_a_server_too() -> None:
    model = remote_model("qwen3-vl-8b-thinking")
    assert model.thinks
    assert model.sampling_of(TWO_TURNS).max_tokens > 4096


@pytest.mark.parametrize(("mark", "found"), [("[THINK]", True), ("</think>", True), ("<pad>", False)])
def test_marks_of_thoughts_that_are_special_tokens_are_kept(tmp_path: Path, mark: str, found: bool) -> None:
    added = json.dumps({"added_tokens_decoder": {"0": {"content": mark, "special": True}}})
    model = with_template(tmp_path / "mine", LLAVA_CHAT_TEMPLATE, tokenizer_config__json=added)
    assert model.tokens.mark_thoughts is found
