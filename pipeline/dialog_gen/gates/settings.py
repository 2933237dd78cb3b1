"""Which gates are applied, and where their limits lie: `--gates text`, `--gates length,leak` or a TOML file."""

import math
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dialog_gen.core.errors import UsageError, did_you_mean
from dialog_gen.core.toml_files import read_toml_model
from dialog_gen.core.version import __version__
from dialog_gen.dataset.record import GATES


def _limit(value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise ValueError("a limit is a number")
    return None if value is None or math.isinf(value) else value


Limit = Annotated[float | None, AfterValidator(_limit)]
LowerCase = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]


class Limits(BaseModel):
    """When a gate's score speaks against a pair. With neither limit the score is stored and marks nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    min: Limit = None
    """Lower scores are marked; `-inf` takes a default away."""
    max: Limit = None
    """Higher scores are marked; `inf` takes a default away."""

    def speak_against(self, score: float | None) -> bool:
        """Whether a score, as it is stored, lies beyond a limit."""
        if score is None:
            return False
        # Scores are stored as float32: who reads 0.6 from the column must come to the same mark.
        stored = np.float32(score)
        too_low = self.min is not None and stored < np.float32(self.min)
        return bool(too_low or (self.max is not None and stored > np.float32(self.max)))

    def limits_text(self) -> str:
        """Such as "1 to 60", "at most 0.8" or "none"."""
        if self.min is None:
            return "none" if self.max is None else f"at most {self.max:g}"
        return f"at least {self.min:g}" if self.max is None else f"{self.min:g} to {self.max:g}"

    @model_validator(mode="after")
    def _are_ordered(self) -> "Limits":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min} lies above max = {self.max}: every pair would be marked")
        return self


class EmptySettings(Limits):
    """See `pair_scores.echo`."""

    max: Limit = 0.8


class RepetitionSettings(Limits):
    """See `pair_scores.repetition`."""

    max: Limit = 0.5


class TruncationSettings(Limits):
    """See `pair_scores.truncation`."""

    max: Limit = 0.5


class LeakSettings(Limits):
    """See `pair_scores.leak`."""

    max: Limit = 0.9


class NearDuplicateSettings(Limits):
    """See `pair_scores.near_duplicates`."""

    max: Limit = 0.85


class SetDuplicateSettings(Limits):
    """See `set_duplicate.SetDuplicate`."""

    max: Limit = 10.0
    similarity: float = Field(default=0.95, ge=0.5, le=0.98)
    """Jaccard similarity from which two pairs count as nearly identical."""
    least_words: int = Field(default=12, ge=1)
    """Words of question and answer together; shorter pairs are alike by necessity and get no score."""


class YesBiasSettings(Limits):
    """See `yes_bias.YesBias`."""

    max: Limit = 0.6
    yes: tuple[LowerCase, ...] = Field(default=("yes",), min_length=1)
    """First words that make an answer a yes."""
    no: tuple[LowerCase, ...] = Field(default=("no",), min_length=1)
    """First words that make an answer a no."""
    least_answers: int = Field(default=100, ge=1)
    """Yes/no answers of the dataset; with fewer nothing is said about its bias."""


class LanguageSettings(Limits):
    """See `language.Language`."""

    min: Limit = 0.1
    expected: str = "en"
    """ISO 639 code."""
    least_bytes: int = Field(default=20, ge=1)
    """UTF-8 bytes of the letters of question and answer together; shorter pairs get no score."""


class LengthSettings(Limits):
    """See `pair_scores.length`."""

    min: Limit = 1.0
    max: Limit = 60.0


class SimilaritySettings(Limits):
    """See `similarity.Similarity`. What a cosine means differs between models: there is no limit by default."""

    model: str = "ViT-B-32-quickgelu"
    """open_clip's name, a checkpoint folder, or `shapes-clip`."""
    pretrained: str | None = "laion400m_e31"
    """open_clip's tag or a safetensors file. Where `model` is named there is no default: a folder has its own."""

    @model_validator(mode="before")
    @classmethod
    def _another_model_has_other_weights(cls, values: Any) -> Any:
        return {"pretrained": None, **values} if isinstance(values, dict) and "model" in values else values


class LogprobSettings(Limits):
    """See `pair_scores.logprob`."""

    min: Limit = -2.0


class SelfConsistencySettings(Limits):
    """See `self_consistency.SelfConsistency`."""

    min: Limit = 0.8
    samples: int = Field(default=4, ge=1, le=64)
    """How often each question is asked again."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 is greedy, and enough for one sample only."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=32, ge=1)
    model: str | None = None
    """Who is asked: a generator's name, Hugging Face id or folder. Default: who held the dialogues."""
    engine: str | None = None
    """Default: the engine of the dialogues."""
    prompt: str | None = None
    """The user's words with {question} in them. Default: the model's own form for short answers."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _asks_something_else(self) -> "SelfConsistencySettings":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples = {self.samples} at temperature = 0 are all the same: set a temperature")
        if self.prompt is not None and "{question}" not in self.prompt:
            raise ValueError(f"prompt = {self.prompt!r} does not hold {{question}}")
        return self


class GateSettings(BaseModel):
    """The gates to apply, a table each; those left out are not applied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    empty: EmptySettings | None = None
    repetition: RepetitionSettings | None = None
    truncation: TruncationSettings | None = None
    leak: LeakSettings | None = None
    near_duplicate: NearDuplicateSettings | None = None
    set_duplicate: SetDuplicateSettings | None = None
    yes_bias: YesBiasSettings | None = None
    language: LanguageSettings | None = None
    length: LengthSettings | None = None
    similarity: SimilaritySettings | None = None
    logprob: LogprobSettings | None = None
    self_consistency: SelfConsistencySettings | None = None

    @model_validator(mode="after")
    def _names_a_gate(self) -> "GateSettings":
        if not self.chosen():
            raise ValueError(f"no gate is named. Known: {', '.join(GATES)}")
        return self

    def chosen(self) -> dict[str, Limits]:
        """Gate -> its settings, in the order of `GATES`."""
        return {name: getattr(self, name) for name in GATES if getattr(self, name) is not None}

    def versions(self) -> dict[str, str]:
        """The versions of what makes the scores."""
        libraries = {"set_duplicate": "datasketch", "language": "py3langid"}
        used = {library: version(library) for name, library in libraries.items() if name in self.chosen()}
        return {"dialog-gen": __version__, **used}


def _all_of(names: Iterable[str]) -> GateSettings:
    return GateSettings.model_validate({name: {} for name in names})


NEED_A_MODEL = frozenset({"similarity", "self_consistency"})
"""Gates that ask a model; all others go by the text and what was recorded with it."""


def load_gates(spec: str) -> GateSettings:
    """Settings by a user's word: names with commas between, among them "text" (all that need no model) and "all", or a
    TOML file.

    Raises UsageError for an unknown name, and for a file that cannot be read or holds something else.
    """
    if Path(spec).suffix == ".toml":
        return read_toml_model(Path(spec), GateSettings, "gates")
    groups = {"all": list(GATES), "text": [name for name in GATES if name not in NEED_A_MODEL]}
    names = [name for word in spec.split(",") for name in groups.get(word.strip(), [word.strip()])]
    for name in names:
        if name not in GATES:
            hint = did_you_mean(name, [*GATES, *groups])
            raise UsageError(f"--gates {spec}: unknown gate {name!r}: {hint}; or give a .toml file.")
    return _all_of(names)
