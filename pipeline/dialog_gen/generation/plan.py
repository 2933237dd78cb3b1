"""The plan of a run: its settings, which are checked before anything slow starts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.files import absolute
from dialog_gen.core.plain_problems import plain_problem
from dialog_gen.core.plural import count_of
from dialog_gen.core.progress import OnProgress, ignore_progress
from dialog_gen.core.visible import visible
from dialog_gen.dataset.record import SCHEMA_VERSION, STATEMENTS
from dialog_gen.dataset.writer import check_free
from dialog_gen.engines.base import ENGINES, IMAGES_PER_PROMPT, EngineOptions, default_engine
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation.dialogue import DialogueGenerator
from dialog_gen.models.checks import check_prompts, check_several_images
from dialog_gen.models.context import check_context, check_given, fitting_context, needed
from dialog_gen.models.image_trial import try_image
from dialog_gen.models.registry import GeneratorModel, resolve_model
from dialog_gen.protocols.protocol import Conversation, Protocol, Sampling, load_with_fallbacks
from dialog_gen.sources.base import InputShard, SourceImage, check_exists, open_source, with_limit
from dialog_gen.sources.unique import check_unique_ids
from dialog_gen.sources.unused import UnusedTally

_IMAGES_SHOWN = 3
_DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A run, ready to be started."""

    generator: DialogueGenerator
    engine: EngineSpec
    images: str
    """The image source, as an absolute path or a URL."""
    shard_size: int
    limit: int | None
    prefix_ids: bool
    images_per_sample: str = "first"
    """"first" or "all"."""

    def config(self) -> dict[str, Any]:
        """The settings that the rows depend on. All runs into one folder must have equal ones."""
        model, options = self.engine.model, self.engine.options
        fallbacks = self.generator.chain[1:]
        return {
            "schema_version": SCHEMA_VERSION,
            "images": self.images,
            "shard_size": self.shard_size,
            "model": model.name,
            "model_revision": model.revision,
            "dtype": options.dtype or model.dtype,
            "max_model_len": options.max_model_len or model.max_model_len,
            "engine": self.engine.name,
            "deterministic": options.deterministic,
            "protocol": self.generator.protocol.name,
            "prompt_sha256": self.generator.prompt_sha256,
            **self.generator.sampling.recorded(),
            "attempts": self.generator.attempts,
            "seed": self.generator.run_seed,
            **({"prefix_ids": True} if self.prefix_ids else {}),
            **({"images_per_sample": self.images_per_sample} if self.images_per_sample != "first" else {}),
            **(
                {"image_max_side": options.image_max_side, "image_format": options.image_format}
                if model.folder is None
                else {}
            ),
            **options.pixel_limits(model).processor_kwargs(),
            **({"structured": True} if options.structured else {}),
            **({STATEMENTS: True} if self.generator.has_statements else {}),
            **({"fallbacks": [_fallback_config(other) for other in fallbacks]} if fallbacks else {}),
            # Datasets that were made before these settings existed must stay the same configuration.
            **{
                name: value
                for name in ("kv_cache_dtype", "quantization")
                if (value := getattr(options, name)) not in (None, "auto")
            },
        }

    def check_ids(self, on_progress: OnProgress = ignore_progress) -> None:
        """Raises UsageError if two images of the input have the same id."""
        check_unique_ids(self.images, limit=self.limit, prefix_ids=self.prefix_ids, on_progress=on_progress)

    def shards(self) -> Iterator[InputShard]:
        """The input, divided into shards. Raises UsageError if there are no images."""
        source = open_source(
            self.images,
            shard_size=self.shard_size,
            prefix_ids=self.prefix_ids,
            all_images=self.images_per_sample == "all",
        )
        return with_limit(source, self.limit)

    def describe(self) -> str:
        """The plan and the rendered prompts of the first images, as text for people."""
        shards, images, unused, first = 0, 0, UnusedTally(), list[SourceImage]()
        for shard in self.shards():
            if len(first) < _IMAGES_SHOWN:
                first += shard.head(_IMAGES_SHOWN - len(first)).read()
            unused.merge(shard.unused, shard.unused_names)
            shards, images = shards + 1, images + shard.count
        lines = ["plan", *(f"  {key}: {value}" for key, value in self.config().items())]
        if self.engine.model.knows:
            lines.append(f"  {self.engine.model.name} knows {self.engine.model.knows} only")
        if (context := self.engine.options.context_of(self.engine.model)) is not None:
            lines.append(f"  context: {context} tokens of prompt, image and answers")
        requests = count_of(self.generator.requests, "request")
        lines.append(f"  {count_of(images, 'image')} in {count_of(shards, 'shard')}, {requests} per image")
        lines += [f"  not used: {line}" for line in unused.lines()]
        lines += ["", "prompts"]
        for image in first:
            sizes = ", ".join(count_of(len(stored.data), "byte") for stored in image.images)
            lines.append(f"  {image.image_id} ({sizes})")
            lines += [f"    {what}: {prompt!r}" for what, prompt in self._rendered(len(image.images))]
        return "\n".join(map(visible, lines))

    def _rendered(self, images: int) -> Iterator[tuple[str, str]]:
        """A name for each request of a dialogue about so many images, and its prompt."""
        for place, generator in enumerate(self.generator.chain):
            protocol = generator.protocol
            of_fallback = f"fallback {protocol.name}, " if place else ""
            stand_ins = [f"<answer {k}>" for k in range(1, len(protocol.turns))]
            for number, messages in enumerate(protocol.rehearsal(stand_ins), 1):
                yield f"{of_fallback}turn {number}", self._render(messages, images)
            if protocol.statement is not None:
                text = protocol.statement_text("<question>", "<answer>")
                yield f"{of_fallback}statement", self._render(protocol.statement_conversation(text), images)

    def _render(self, messages: Conversation, images: int) -> str:
        if self.engine.model.chat_template is None:
            return "\n".join(f"{message.role}: {message.text}" for message in messages)
        return self.engine.model.render(messages, images)


def make_plan(
    *,
    model: str,
    images: str,
    out: str,
    revision: str | None = None,
    protocol: str | None = None,
    engine: str | None = None,
    sampling: dict[str, Any],
    seed: int,
    attempts: int,
    shard_size: int,
    limit: int | None,
    prefix_ids: bool = False,
    images_per_sample: str = "first",
    options: EngineOptions,
    download: bool = True,
    starts: bool = True,
    here: bool = True,
) -> RunPlan:
    """Checks and completes the settings. Values of `sampling` that are not None replace those of the protocol.

    `engine` defaults to the model's default engine; without `starts`, it is not checked; `here` says whether it is to
    run on this machine. Raises UsageError for wrong settings, MissingExtraError for an engine that is not installed.
    """
    for flag, value in (("--model", model), ("--images", images), ("--out", out)):
        if not value.strip():  # an unset shell variable; as a path, it would mean the working folder
            raise UsageError(f"{flag} is empty: give it a value.")
    if images_per_sample not in IMAGES_PER_PROMPT:
        raise UsageError(
            f"--images-per-sample {images_per_sample}: {did_you_mean(images_per_sample, IMAGES_PER_PROMPT)}."
        )
    if "://" not in images:
        images = absolute(images)
        if "://" not in out and Path(absolute(out)).is_relative_to(images):
            raise UsageError(
                f"--out {out} lies in --images {images}: the run would read its own output. Choose another --out."
            )
        check_exists(images)
    # Both folders come before the model: to check that imports packages and may download weights.
    check_free(out)
    options = replace(options, images_per_prompt=IMAGES_PER_PROMPT[images_per_sample])
    entry = ENGINES.get(engine, where="--engine") if engine is not None else None
    resolve = entry.resolve if entry is not None else resolve_model
    resolved = resolve(model, revision=revision, download=download)
    if options.dtype is not None and options.dtype not in _DTYPES:
        raise UsageError(f"--dtype {options.dtype}: {did_you_mean(options.dtype, _DTYPES)}.")
    scripts = load_with_fallbacks(protocol or resolved.default_protocol)
    decodings = [_decoding(resolved, script, sampling) for script in scripts]
    if options.structured and not any(turn.parse == "qa-list" for script in scripts for turn in script.turns):
        raise UsageError(
            f'--structured: the protocol {scripts[0].name} asks for no list of pairs (parse = "qa-list"); leave it out.'
        )
    if resolved.folder is not None:
        for script in scripts:
            check_prompts(resolved, script)
        try_image(resolved, scripts, options.pixel_limits(resolved))
        if options.images_per_prompt > 1:
            check_several_images(resolved)
            for script in scripts:
                check_prompts(resolved, script, images=2)
            try_image(resolved, scripts, options.pixel_limits(resolved), images=2)
        if options.max_model_len is not None:
            check_given(resolved, options.max_model_len)
        limits = options.pixel_limits(resolved)
        every = [
            needed(resolved, script, decoding.max_tokens, limits, options.images_per_prompt)
            for script, decoding in zip(scripts, decodings, strict=True)
        ]
        options = replace(options, context=fitting_context(resolved, max(every, key=lambda wanted: wanted.whole)))
        for wanted in every:
            check_context(resolved, wanted, options.context_of(resolved))
    entry = entry or default_engine(resolved)
    spec = EngineSpec(name=entry.name, model=resolved, sampling=decodings[0], options=options)
    if starts:
        spec.check(here=here)
    if len(set(decodings)) > 1 and not entry.samples_per_request:
        raise UsageError(
            f"protocol {scripts[0].name}: its fallback has other decoding settings, which the engine {entry.name} "
            "cannot change during a run: give both protocols the same [sampling]."
        )
    generator = None
    for script, decoding in reversed([*zip(scripts, decodings, strict=True)]):
        generator = DialogueGenerator(
            protocol=script,
            chat_template=resolved.chat_template,
            sampling=decoding,
            run_seed=seed,
            attempts=attempts,
            fallback=generator,
            structured=options.structured,
            special_tokens=resolved.tokens.texts,
        )
    if generator is None:
        raise AssertionError("unreachable: there is a protocol")
    return RunPlan(
        generator=generator,
        engine=spec,
        images=images,
        shard_size=shard_size,
        limit=limit,
        prefix_ids=prefix_ids,
        images_per_sample=images_per_sample,
    )


def _decoding(model: GeneratorModel, script: Protocol, given: dict[str, Any]) -> Sampling:
    """The decoding settings of a protocol for a model, with the values that the user gave."""
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        return Sampling.model_validate({**model.sampling_of(script).model_dump(), **overrides})
    except ValidationError as error:
        problem = error.errors()[0]
        flag = str(problem["loc"][0]).replace("_", "-")
        raise UsageError(f"--{flag} {problem['input']}: {plain_problem(problem)}.") from None


def _fallback_config(generator: DialogueGenerator) -> dict[str, Any]:
    return {
        "protocol": generator.protocol.name,
        "prompt_sha256": generator.prompt_sha256,
        **generator.sampling.recorded(),
    }
