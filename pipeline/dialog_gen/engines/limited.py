"""An engine that gets a limited number of requests at a time; the others wait in their order."""

import asyncio

from dialog_gen.engines.base import Answer, Engine, Request


class LimitedEngine:
    """Another engine, with at most `limit` requests at a time."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self.name, self.version, self.deterministic = engine.name, engine.version, engine.deterministic
        self._engine, self._slots = engine, asyncio.Semaphore(limit)

    async def answer(self, request: Request) -> Answer:
        """As `Engine.answer`."""
        async with self._slots:
            return await self._engine.answer(request)

    async def close(self) -> None:
        """As `Engine.close`."""
        await self._engine.close()
