"""An engine that answers from stored answers, and says which request has none."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dialog_gen.engines.base import Answer, Engine, RefusedRequestError, Request
from dialog_gen.engines.start import EngineSpec
from dialog_gen.generation.batch.answers import Answers
from dialog_gen.generation.dialogue import DialogueGenerator, seed_of

_ID = re.compile(r"[0-9a-f]{32}-t[0-9]+-a[0-9]+-([0-9a-f]{8})")
# The pixels do not matter: answers are found by the hash of the image.
_NO_IMAGE = Image.new("RGB", (1, 1))


class UnansweredError(Exception):
    """There is no stored answer to this request."""

    def __init__(self, custom_id: str, request: Request) -> None:
        super().__init__(f"there is no answer to {custom_id}")
        self.custom_id, self.request = custom_id, request


class ReplayEngine:
    """Answers the requests of one dataset."""

    name = "openai"
    version = "batch"
    deterministic = True

    def __init__(self, answers: Answers, generator: DialogueGenerator, config_sha256: str) -> None:
        self._answers, self._generator, self._config = answers, generator, config_sha256[:8]
        self._unanswered = list[UnansweredError]()

    async def answer(self, request: Request) -> Answer:
        """The stored answer. Raises RefusedRequestError if the server refused, and UnansweredError."""
        custom_id = self._id_of(request)
        found = self._answers.get(custom_id)
        if found is None:
            self._unanswered.append(UnansweredError(custom_id, request))
            raise self._unanswered[-1]
        if "refused" in found:
            raise RefusedRequestError("engine_refused", found["refused"])
        return Answer(
            text=found["text"],
            finish_reason=found["finish_reason"],
            output_tokens=found["output_tokens"],
            prompt_tokens=found["prompt_tokens"],
            saw_image=True,
        )

    async def close(self) -> None:
        """Nothing was started."""

    async def unanswered(self, image_sha256: str) -> list[UnansweredError]:
        """The next requests of an image's dialogue; none if the dialogue is complete."""
        self._unanswered.clear()
        try:
            await self._generator.generate(self, (_NO_IMAGE,), image_sha256)
        except UnansweredError:
            return list(self._unanswered)
        return []

    def knows(self, custom_id: object) -> bool | None:
        """Whether the id belongs to this dataset's configuration; None if it is no id of `batch write`."""
        found = _ID.fullmatch(custom_id) if isinstance(custom_id, str) else None
        return None if found is None else found[1] == self._config

    def _id_of(self, request: Request) -> str:
        """Image, turn and attempt, from the seed; and the configuration, so that datasets cannot be mixed up."""
        sha256, attempt = request.image_sha256, 0
        for generator in self._generator.chain:
            for _ in range(generator.tries):
                attempt += 1
                turn = request.seed - seed_of(generator.run_seed, sha256, attempt)
                if 0 <= turn < generator.requests:
                    return f"{sha256[:32]}-t{turn + 1}-a{attempt}-{self._config}"
        raise ValueError(f"seed {request.seed} belongs to no turn of the dialogue about {sha256}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySpec(EngineSpec):
    """Starts a `ReplayEngine` in place of the engine."""

    engine: Any = field(compare=False)

    def start(self, log: Path) -> Engine:
        """The engine."""
        return self.engine
