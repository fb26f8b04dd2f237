"""The client for asyncio. Owns one channel and repeats nothing."""
# ruff: noqa: ASYNC109 - a timeout here travels with the call

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from typing import Self, Unpack

import grpc

from batonmesh.async_sessions import AsyncSessions, told
from batonmesh.credentials import Credentials, showing
from batonmesh.messages import (
    Answer,
    Event,
    Options,
    Prompt,
    count_request,
    events,
    explain_request,
    explained,
    generate_request,
    whole,
)
from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc, mesh_pb2, mesh_pb2_grpc


class AsyncStream(AsyncIterator[Event]):
    """An answer as it comes: its tokens, then its final. Closing it, or leaving its context, cancels the request.

    Raises a `BatonError` when the request fails; what came before it is then not a complete answer. The prompt's
    log-probabilities, where they were asked for, are in `prompt_logprobs` from the first token on.
    """

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[inference_pb2.GenerateRequest, inference_pb2.GenerateResponse]
    ) -> None:
        self._call = call
        self.prompt_logprobs: common_pb2.PromptLogprobs | None = None
        self._ready: deque[Event] = deque()

    async def __anext__(self) -> Event:
        while not self._ready:
            message = await told(self._call.read())
            if not isinstance(message, inference_pb2.GenerateResponse):
                raise StopAsyncIteration
            self.prompt_logprobs = explained(message) or self.prompt_logprobs
            self._ready.extend(events(message))
        return self._ready.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._call.cancel()


class AsyncClient:
    """As `Client`, for one event loop: create it where that loop runs."""

    def __init__(self, target: str, credentials: Credentials | None = None) -> None:
        shown = credentials or Credentials()
        metadata = shown.metadata
        secure = shown.of_channel
        if secure is None:
            self._channel = grpc.aio.insecure_channel(target)
        else:
            self._channel = grpc.aio.secure_channel(target, secure, options=shown.options)
        self._inference = showing(inference_pb2_grpc.InferenceStub(self._channel), metadata)
        self._mesh = showing(mesh_pb2_grpc.MeshStub(self._channel), metadata)
        self.sessions = AsyncSessions(self._channel, metadata)

    def generate(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> AsyncStream:
        """Begin an answer. Iterate it, and close it when you stop before its end."""
        request = generate_request(model, prompt, timeout, options)
        return AsyncStream(self._inference.Generate(request, timeout=timeout))

    async def complete(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Answer:
        """The whole answer at once."""
        async with self.generate(model, prompt, timeout=timeout, **options) as stream:
            answer = whole([event async for event in stream])
        return replace(answer, prompt_logprobs=stream.prompt_logprobs)

    async def count_tokens(self, model: str, prompt: Prompt, *, timeout: float | None = None) -> int:
        response = await told(self._inference.CountTokens(count_request(model, prompt), timeout=timeout))
        return response.tokens

    async def list_models(self, *, timeout: float | None = None) -> list[inference_pb2.Model]:
        response = await told(self._inference.ListModels(inference_pb2.ListModelsRequest(), timeout=timeout))
        return list(response.models)

    async def topology(self, *, timeout: float | None = None) -> mesh_pb2.View:
        """The workers that serve now."""
        response = await told(self._mesh.Topology(mesh_pb2.TopologyRequest(), timeout=timeout))
        return response.view

    async def explain_route(
        self,
        model: str,
        prompt: Prompt | int,
        *,
        max_tokens: int | None = None,
        tenant: str = "",
        timeout: float | None = None,
    ) -> mesh_pb2.ExplainRouteResponse:
        """How the gateway would place a prompt now, and what that would cost on each decode worker; nothing is placed.
        A number stands for a prompt of so many tokens that no worker holds anything of."""
        request = explain_request(model, prompt, max_tokens, tenant)
        return await told(self._mesh.ExplainRoute(request, timeout=timeout))

    async def drain(self, worker: str, grace: float, *, timeout: float | None = None) -> None:
        """Have a worker leave the mesh within `grace` seconds; the topology tells how far that is."""
        request = mesh_pb2.DrainRequest(worker=worker, grace_ms=round(grace * 1000))
        await told(self._mesh.Drain(request, timeout=timeout))

    async def close(self) -> None:
        """Ends every answer that is still on its way."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
