"""The plan of a run: its settings, which are checked before anything slow starts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.dataset.record import SCHEMA_VERSION
from dialog_gen.engines.base import ENGINES, EngineOptions, default_engine
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation.dialogue import DialogueGenerator
from dialog_gen.models.registry import resolve_model
from dialog_gen.protocols.protocol import Conversation, Sampling, load_protocol
from dialog_gen.sources.base import InputShard, SourceImage, open_source, with_limit

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

    def config(self) -> dict[str, Any]:
        """The settings that the rows depend on. All runs into one folder must have equal ones."""
        model, options = self.engine.model, self.engine.options
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
            **self.generator.sampling.model_dump(),
            "attempts": self.generator.attempts,
            "seed": self.generator.run_seed,
        }

    def shards(self) -> Iterator[InputShard]:
        """The input, divided into shards. Raises UsageError if there are no images."""
        return with_limit(open_source(self.images, shard_size=self.shard_size), self.limit)

    def describe(self) -> str:
        """The plan and the rendered prompts of the first images, as text for people."""
        shards, images, first = 0, 0, list[SourceImage]()
        for shard in self.shards():
            if len(first) < _IMAGES_SHOWN:
                first += shard.head(_IMAGES_SHOWN - len(first)).read()
            shards, images = shards + 1, images + shard.count
        protocol = self.generator.protocol
        stand_ins = [f"<answer {k}>" for k in range(1, len(protocol.turns))]
        prompts: list[str] = []
        for index in range(len(protocol.turns)):
            prompts.append(protocol.user_text(index, prompts, stand_ins[:index]))
        rendered = [self._render(protocol.conversation(prompts[: k + 1], stand_ins[:k])) for k in range(len(prompts))]
        lines = ["plan", *(f"  {key}: {value}" for key, value in self.config().items())]
        lines += [f"  {images} images in {shards} shards, {len(protocol.turns)} requests per image", "", "prompts"]
        for image in first:
            lines.append(f"  {image.image_id} ({len(image.data)} bytes)")
            lines += [f"    turn {number}: {prompt!r}" for number, prompt in enumerate(rendered, 1)]
        return "\n".join(lines)

    def _render(self, messages: Conversation) -> str:
        if self.engine.model.chat_template is None:
            return "\n".join(f"{message.role}: {message.text}" for message in messages)
        return self.engine.model.render(messages)


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
    options: EngineOptions,
    download: bool = True,
) -> RunPlan:
    """Checks and completes the settings. Values of `sampling` that are not None replace those of the protocol.

    `engine` defaults to the model's default engine. Raises UsageError for wrong settings, MissingExtraError for an
    engine that is not installed.
    """
    for flag, value in (("--model", model), ("--images", images), ("--out", out)):
        if not value.strip():  # an unset shell variable; as a path, it would mean the working folder
            raise UsageError(f"{flag} is empty: give it a value.")
    entry = ENGINES.get(engine, where="--engine") if engine is not None else None
    resolve = entry.resolve if entry is not None else resolve_model
    resolved = resolve(model, revision=revision, download=download)
    if options.dtype is not None and options.dtype not in _DTYPES:
        raise UsageError(f"--dtype {options.dtype}: {did_you_mean(options.dtype, _DTYPES)}.")
    script = load_protocol(protocol or resolved.default_protocol)
    try:
        overrides = {key: value for key, value in sampling.items() if value is not None}
        decoding = Sampling.model_validate({**script.sampling.model_dump(), **overrides})
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(
            f"--{str(problem['loc'][0]).replace('_', '-')} {problem['input']}: {problem['msg']}."
        ) from None
    if "://" not in images:
        images = str(Path(images).expanduser().absolute())
        if "://" not in out and Path(out).expanduser().absolute().is_relative_to(images):
            raise UsageError(
                f"--out {out} lies in --images {images}: the run would read its own output. Choose another --out."
            )
    spec = EngineSpec(name=(entry or default_engine(resolved)).name, model=resolved, sampling=decoding, options=options)
    spec.check()
    return RunPlan(
        generator=DialogueGenerator(
            protocol=script,
            chat_template=resolved.chat_template,
            sampling=decoding,
            run_seed=seed,
            attempts=attempts,
        ),
        engine=spec,
        images=images,
        shard_size=shard_size,
        limit=limit,
    )
