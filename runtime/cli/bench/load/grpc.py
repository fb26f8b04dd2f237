"""gRPC as a load: many callers share a connection, as the requests of one application do."""

import time
from typing import Self

from runtime.cli.bench.load.caller import Answer
from runtime.clients.inference import GrpcInference
from runtime.errors import BatonError, Unavailable


class GrpcCaller:
    def __init__(self, target: str, model: str, tokens: int) -> None:
        self._client = GrpcInference(target, model, tokens)

    @classmethod
    async def connect(cls, target: str, model: str, tokens: int) -> Self:
        return cls(target, model, tokens)

    async def call(self, prompt: str) -> Answer:
        """Raises `Unavailable` when the answer breaks."""
        began = time.perf_counter()
        first, events = 0.0, 0
        try:
            async for count in self._client.answer(prompt):
                first = first or time.perf_counter()
                events += count
        except BatonError as error:
            raise Unavailable(error.message) from error
        return Answer(first - began, time.perf_counter() - began, events)

    async def close(self) -> None:
        await self._client.close()
