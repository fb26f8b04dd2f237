"""The thin client as a load: many callers share a channel, as the requests of one application do."""

import time
from typing import Self

import batonmesh
from batonmesh import AsyncClient
from runtime.cli.bench.load.caller import Answer
from runtime.errors import Unavailable


class GrpcCaller:
    def __init__(self, target: str, model: str, tokens: int) -> None:
        self._client = AsyncClient(target)
        self._model = model
        self._tokens = tokens

    @classmethod
    async def connect(cls, target: str, model: str, tokens: int) -> Self:
        return cls(target, model, tokens)

    async def call(self, prompt: str) -> Answer:
        """Raises `Unavailable` when the answer breaks."""
        messages = [{"role": "user", "content": prompt}]
        began = time.perf_counter()
        first, events = 0.0, 0
        try:
            async for event in self._client.generate(self._model, messages, max_tokens=self._tokens, temperature=0.0):
                first = first or (time.perf_counter() if event.text else 0.0)
                events += 1
        except batonmesh.BatonError as error:
            raise Unavailable(error.message) from error
        return Answer(first - began, time.perf_counter() - began, events)

    async def close(self) -> None:
        await self._client.close()
