"""What the requests cost, and when to stop."""

import asyncio
from dataclasses import dataclass, replace

from dialog_gen.engines.base import EngineDiedError, EngineOptions, Request, ServerUse

_MILLION = 1_000_000
# Where a server does not count tokens: English text has about four characters a token, and clouds count about 750
# pixels a token.
_CHARACTERS_PER_TOKEN = 4
_PIXELS_PER_TOKEN = 750


class BudgetSpentError(EngineDiedError):
    """The next request might cost more than is left."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a request."""

    input: int
    output: int


class Budget:
    """Counts tokens and cost. With a limit, each request reserves what it may cost at most before it is sent."""

    def __init__(self, options: EngineOptions, max_tokens: int) -> None:
        self._options, self._max_tokens = options, max_tokens
        self._use = ServerUse(cost=None if options.price_input is None else 0.0)
        self._reserved = 0.0
        self._largest_prompt = 0
        self._settled = asyncio.Event()

    def use(self) -> ServerUse:
        """What was spent until now."""
        return self._use

    async def reserve(self, request: Request) -> Tokens:
        """Returns the most that the request may need, when the budget has it.

        Raises BudgetSpentError if the budget does not have it even after all requests in flight.
        """
        most = Tokens(max(self._estimate(request), self._largest_prompt), self._max_tokens)
        limit = self._options.max_cost
        while limit is not None and self.spent + self._reserved + self._cost(most) > limit:
            if self._reserved <= 0:
                raise BudgetSpentError(
                    f"--max-cost {limit:g} is reached: {self.spent:.6g} is spent"
                    f"{' (partly estimated)' if self._use.estimated else ''}, and the next request may cost "
                    f"{self._cost(most):.2g}"
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += self._cost(most)
        return most

    def settle(self, reserved: Tokens, used: Tokens | None, *, estimated: bool = False) -> None:
        """Ends a reservation; `used` is None if the server did no work for it."""
        self._reserved = max(0.0, self._reserved - self._cost(reserved))
        if self._reserved < self._cost(Tokens(0, 1)) / _MILLION:
            self._reserved = 0.0  # what is left is a rounding error
        if used is not None:
            self.count(used, estimated=estimated)
        self._settled.set()

    def count(self, used: Tokens, *, estimated: bool = False) -> None:
        """Counts a request that was answered."""
        now = self._use
        if not estimated:
            self._largest_prompt = max(self._largest_prompt, used.input)
        self._use = replace(
            now,
            requests=now.requests + 1,
            input_tokens=now.input_tokens + used.input,
            output_tokens=now.output_tokens + used.output,
            estimated=now.estimated + estimated,
            cost=None if now.cost is None else now.cost + self._cost(used),
        )

    def count_lost(self, reserved: Tokens) -> None:
        """Counts a request whose answer was lost on the way: the server may have worked on it, and takes money then."""
        if self._use.cost is not None:
            self.count(reserved, estimated=True)

    def count_retry(self) -> None:
        """Counts a request that is sent again."""
        self._use = replace(self._use, retries=self._use.retries + 1)

    def estimated(self, request: Request, text: str) -> Tokens:
        """The tokens of a request and its answer, if the server does not count them."""
        return Tokens(self._estimate(request), max(1, len(text) // _CHARACTERS_PER_TOKEN))

    @property
    def spent(self) -> float:
        """The cost until now; 0 without prices."""
        return self._use.cost or 0.0

    def _cost(self, tokens: Tokens) -> float:
        price_input, price_output = self._options.price_input or 0.0, self._options.price_output or 0.0
        return (tokens.input * price_input + tokens.output * price_output) / _MILLION

    def _estimate(self, request: Request) -> int:
        pixels = 0.0
        for width, height in (image.size for image in request.images):
            pixels += width * height * min(1.0, self._options.image_max_side / max(width, height)) ** 2
        characters = sum(len(message.text) for message in request.messages)
        return int(pixels / _PIXELS_PER_TOKEN) + characters // _CHARACTERS_PER_TOKEN + 16
