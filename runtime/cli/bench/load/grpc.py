"""gRPC as a load: many callers share a channel, as the requests of one application do. The generated stub alone: what a
client makes of the messages is not the gateway's."""

import time
from typing import Self

import grpc

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from runtime.cli.bench.load.caller import Answer
from runtime.errors import Unavailable


class GrpcCaller:
    def __init__(self, target: str, model: str, tokens: int) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)
        self._model = model
        self._sampling = common_pb2.Sampling(max_tokens=tokens, temperature=0.0)

    @classmethod
    async def connect(cls, target: str, model: str, tokens: int) -> Self:
        return cls(target, model, tokens)

    async def call(self, prompt: str) -> Answer:
        """Raises `Unavailable` when the answer breaks."""
        messages = [inference_pb2.ChatMessage(role="user", content=prompt)]
        request = inference_pb2.GenerateRequest(
            model=self._model,
            prompt=inference_pb2.Prompt(chat=inference_pb2.Chat(messages=messages)),
            sampling=self._sampling,
        )
        began = time.perf_counter()
        first, events = 0.0, 0
        try:
            async for message in self._stub.Generate(request):
                first = first or time.perf_counter()
                events += len(message.events) + message.HasField("final")
        except grpc.aio.AioRpcError as error:
            raise Unavailable(str(error.details())) from error
        return Answer(first - began, time.perf_counter() - began, events)

    async def close(self) -> None:
        await self._channel.close(None)
