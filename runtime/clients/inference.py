"""An answer as messages, for who counts them: what a client library makes of them is left out."""

from collections.abc import AsyncIterator

import grpc

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from runtime.kv.transport.failures import failure


class GrpcInference:
    """Answers of `tokens` greedy tokens over a channel of its own; gRPC lets those of one process share a connection,
    as the requests of one application do."""

    def __init__(self, target: str, model: str, tokens: int) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._stub = inference_pb2_grpc.InferenceStub(self._channel)
        self._model = model
        self._sampling = common_pb2.Sampling(max_tokens=tokens, temperature=0.0)

    async def answer(self, prompt: str) -> AsyncIterator[int]:
        """How many events each message brings, the final one counted; raises the `BatonError` that it fails with."""
        messages = [inference_pb2.ChatMessage(role="user", content=prompt)]
        asked = inference_pb2.Prompt(chat=inference_pb2.Chat(messages=messages))
        request = inference_pb2.GenerateRequest(model=self._model, prompt=asked, sampling=self._sampling)
        try:
            async for message in self._stub.Generate(request):
                yield len(message.events) + message.HasField("final")
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error

    async def close(self) -> None:
        await self._channel.close(None)
