"""The engine `openai`: any server or cloud with OpenAI's chat API does the work.

messages.py      a request as the server gets it; the image as a data URL
concurrency.py   how many requests a server gets at a time
pool.py          which server gets the next request
faults.py        what went wrong with a request, and what follows from it
budget.py        what was spent, and when to stop
answers.py       one request and its answer
contact.py       the first contact with a server, which finds wrong settings
engine.py        the engine
"""

import re
from importlib.util import find_spec
from urllib.parse import urlsplit

from dialog_gen.core.errors import MissingExtraError, UsageError
from dialog_gen.core.visible import visible
from dialog_gen.engines.base import ENGINES, Engine, EngineEntry, EngineOptions
from dialog_gen.models.registry import GeneratorModel
from dialog_gen.protocols.protocol import Sampling

_FORMATS = ("jpeg", "png")


class OpenAIEntry(EngineEntry):
    """Asks one or more servers."""

    name = "openai"
    description = "a server or cloud with OpenAI's API, at --endpoint"
    needs = "name"
    samples_per_request = True
    structured = True
    extra = "openai"

    def installed(self) -> bool:
        """Whether the client library is installed."""
        return find_spec("openai") is not None

    def check(self, model: GeneratorModel, options: EngineOptions) -> None:
        """Raises UsageError for wrong settings, MissingExtraError without the client library. Asks no server."""
        super().check(model, options)
        check_server_options(options)
        if not options.endpoints:
            raise UsageError(
                "--engine openai needs an --endpoint, such as http://localhost:8000/v1 or https://api.openai.com/v1."
            )
        for endpoint in options.endpoints:
            check_endpoint(endpoint)
        if not self.installed():
            raise MissingExtraError("--engine openai", self.extra)

    def start(self, model: GeneratorModel, sampling: Sampling, options: EngineOptions) -> Engine:
        """Asks each server once. Raises UsageError if a server cannot be used: wrong address, key or model."""
        from dialog_gen.engines.openai.engine import OpenAIEngine

        return OpenAIEngine(model.name, sampling, options)


def check_endpoint(endpoint: str) -> None:
    """Raises UsageError if this is not the address of a server. The message contains no password."""
    shown = visible(re.sub(r"//[^/@]*@", "//***@", endpoint))
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address, parts = False, urlsplit("")
    if not is_address:
        raise UsageError(f"--endpoint {shown} is not an http or https address, such as http://localhost:8000/v1.")
    if "@" in parts.netloc:
        raise UsageError(
            f"--endpoint {shown} contains a password or key: put the key into the environment variable "
            "OPENAI_API_KEY instead (or name another variable with --api-key-env)."
        )
    if parts.query or parts.fragment:
        raise UsageError(f"--endpoint {shown.partition('?')[0]}: leave out what follows '?' or '#'.")


def check_server_options(options: EngineOptions) -> None:
    """Raises UsageError for wrong settings that do not depend on a server."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", options.api_key_env):
        # The value may be the key itself.
        raise UsageError("--api-key-env takes the name of an environment variable, not the key itself.")
    if options.image_format not in _FORMATS:
        raise UsageError(f"--image-format {visible(options.image_format)}: choose {' or '.join(_FORMATS)}.")
    prices = {"--price-input": options.price_input, "--price-output": options.price_output}
    for flag, price in {**prices, "--max-cost": options.max_cost}.items():
        if price is not None and not price >= 0:
            raise UsageError(f"{flag} {price:g}: give a number that is not negative.")
    missing = [flag for flag, price in prices.items() if price is None]
    if missing and (options.max_cost is not None or len(missing) < len(prices)):
        raise UsageError(f"{' and '.join(missing)} (per million tokens) must be given to know the cost.")


ENGINES.register("openai")(OpenAIEntry())
