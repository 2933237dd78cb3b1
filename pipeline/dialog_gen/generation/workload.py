"""The requests and tokens that an image takes: estimated from the protocol, or counted by a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dialog_gen.core.errors import UsageError
from dialog_gen.models.architectures import architecture_of
from dialog_gen.models.dimensions import image_tokens
from dialog_gen.models.image_trial import try_image
from dialog_gen.models.registry import MODELS, GeneratorModel, ModelEntry, resolve_model
from dialog_gen.models.templates import BLIP2_CHAT_TEMPLATE, LLAVA_CHAT_TEMPLATE, render_chat
from dialog_gen.models.tokens import IMAGE, token_counter
from dialog_gen.protocols.protocol import Conversation, Protocol, load_protocol, load_with_fallbacks

_CHARACTERS_PER_TOKEN = 3
"""Of the short prompts here, with Llama's vocabulary."""
ANSWER_SHARE = 0.625
"""The part of `max_tokens` that an answer has on average: 120 of 192 tokens."""
FALLBACK_SHARE = 0.1
"""The part of the images that a protocol's fallback is asked about, if nothing is known: cautious."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What `images` images take together."""

    images: int
    requests: int
    prompt_tokens: int
    new_tokens: int
    """Prompt tokens that no earlier request of the dialogue had; the prefix cache has the others."""
    output_tokens: int

    def scaled(self, images: int) -> "Workload":
        """The same for another number of images; exact for the same number."""

        def scale(count: int) -> int:
            return (count * images + self.images // 2) // self.images

        return Workload(
            images=images,
            requests=scale(self.requests),
            prompt_tokens=scale(self.prompt_tokens),
            new_tokens=scale(self.new_tokens),
            output_tokens=scale(self.output_tokens),
        )

    def with_part(self, other: "Workload", share: float) -> "Workload":
        """The workload if a share of its images takes what `other` says in addition."""
        return Workload(
            images=self.images,
            requests=self.requests + round(share * other.requests),
            prompt_tokens=self.prompt_tokens + round(share * other.prompt_tokens),
            new_tokens=self.new_tokens + round(share * other.new_tokens),
            output_tokens=self.output_tokens + round(share * other.output_tokens),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A model of which only config.json, the tokenizer and the template are known."""

    name: str
    config: Mapping[str, Any]
    default_protocol: str
    chat_template: str
    count_tokens: Callable[[str], int]
    counted: bool
    """Whether tokens are counted with the model's own tokenizer."""
    model: GeneratorModel | None = None
    """None for a registered model whose files are not here."""

    @property
    def image_tokens_vary(self) -> bool:
        """Whether the tokens of an image depend on its size, or only the model's processor knows their number."""
        fixed = architecture_of(self.config).fixed_image_tokens and image_tokens(self.config) is not None
        return self.model is not None and not fixed

    def count_without_image(self, messages: Conversation) -> int:
        """The tokens of a conversation's prompt without the placeholder of its image."""
        if self.model is not None:
            return self.count_tokens(self.model.render(messages).replace(self.model.placeholder, ""))
        return self.count_tokens(render_chat(self.chat_template, messages).replace(IMAGE, ""))


def model_sizes(name: str, revision: str | None = None) -> Sizes:
    """The sizes of a generator; downloads nothing for a registered one, else only the small files of a Hugging Face id.

    Raises UsageError if the name is unknown, or a model that has files could not be used.
    """
    entry: ModelEntry | None = MODELS.get(name) if name in MODELS.names() else None
    if entry is not None and entry.sizes is not None:
        template = BLIP2_CHAT_TEMPLATE if entry.sizes["model_type"] == "blip-2" else LLAVA_CHAT_TEMPLATE
        return Sizes(
            name=name,
            config=entry.sizes,
            default_protocol=entry.protocol,
            chat_template=template,
            count_tokens=_by_characters,
            counted=False,
        )
    model = resolve_model(name, revision=revision, download=False)
    try_image(model, [load_protocol(model.default_protocol)])
    count = token_counter(model.files)
    return Sizes(
        name=name,
        config=model.config,
        default_protocol=model.default_protocol,
        chat_template=model.chat_template or LLAVA_CHAT_TEMPLATE,
        count_tokens=count or _by_characters,
        counted=count is not None,
        model=model,
    )


def estimated(
    sizes: Sizes,
    protocol: str | None,
    *,
    image_tokens: float,
    answer_tokens: float | None,
    fallback_share: float = FALLBACK_SHARE,
) -> Workload:
    """The workload of a million images with the protocol, by default the model's own; no dialogue is repeated.

    `image_tokens` are those of a dialogue's images together. `answer_tokens` is the mean length of one answer in
    tokens, by default `ANSWER_SHARE` of the maximum. A fallback is asked about `fallback_share` of the images, one that
    follows it about as large a part of these.
    """
    share, total = 1.0, Workload(images=_MILLION, requests=0, prompt_tokens=0, new_tokens=0, output_tokens=0)
    for script in load_with_fallbacks(protocol or sizes.default_protocol):
        total = total.with_part(_of_protocol(script, sizes, image_tokens, answer_tokens), share)
        share *= fallback_share
    return total


def _of_protocol(script: Protocol, sizes: Sizes, image_tokens: float, answer_tokens: float | None) -> Workload:
    """The workload of a million images with a protocol, without its fallback."""
    answer = answer_tokens if answer_tokens is not None else ANSWER_SHARE * script.sampling.max_tokens
    prompts = _prompt_tokens(script, sizes, image_tokens, answer)
    new = prompts[0]
    for before, prompt in pairwise(prompts):
        new += prompt - (before + answer if script.context == "dialogue" else image_tokens)
    statements = _statement_tokens(script, sizes, image_tokens, answer)
    new += sum(prompt - image_tokens for prompt in statements)
    prompts += statements
    return Workload(
        images=_MILLION,
        requests=_MILLION * len(prompts),
        prompt_tokens=round(_MILLION * sum(prompts)),
        new_tokens=round(_MILLION * max(new, prompts[0])),
        output_tokens=round(_MILLION * answer * len(prompts)),
    )


def counted(summary: Mapping[str, Any], where: str) -> Workload:
    """What a run took, by its run.json. Raises UsageError if it made no images, or is too old to have counted."""
    run = summary.get("run", {})
    if not run.get("images"):
        raise UsageError(f"{where} is of a run that made no images: it has measured nothing. Choose another --from.")
    if "prompt_tokens" not in run or "requests" not in run:
        raise UsageError(
            f"{where} counts no requests: it is of an older dialog-gen. Run again with a few images, or give --model "
            "instead of --from."
        )
    prompts = int(run["prompt_tokens"])
    return Workload(
        images=int(run["images"]),
        requests=int(run["requests"]),
        prompt_tokens=prompts,
        new_tokens=prompts,
        output_tokens=int(run["output_tokens"]),
    )


def _prompt_tokens(script: Protocol, sizes: Sizes, image_tokens: float, answer: float) -> list[float]:
    """The length of each turn's prompt in tokens, with its image and the earlier answers."""
    # A short word is one token in most vocabularies, and three characters with its space.
    stand_ins: Sequence[str] = [" ".join(["of"] * round(answer))] * len(script.turns)
    return [sizes.count_without_image(messages) + image_tokens for messages in script.rehearsal(stand_ins)]


def _statement_tokens(script: Protocol, sizes: Sizes, image_tokens: float, answer: float) -> list[float]:
    """The same of each request for a statement; an answer with several pairs is shared out to them."""
    if script.statement is None:
        return []
    tokens: list[float] = []
    for turn in script.turns:
        question = turn.user if turn.parse == "answer" else ""
        stand_in = " ".join(["of"] * round(answer / turn.pairs))
        messages = script.statement_conversation(script.statement_text(question, stand_in))
        tokens += [sizes.count_without_image(messages) + image_tokens] * turn.pairs
    return tokens


def _by_characters(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)
