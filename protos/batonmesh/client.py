"""The client that blocks. Owns one channel and repeats nothing."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

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
from batonmesh.sessions import Sessions, told
from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc, mesh_pb2, mesh_pb2_grpc


class Stream(Iterator[Event]):
    """An answer as it comes: its tokens, then its final. Closing it, or leaving its context, cancels the request.

    Raises a `BatonError` when the request fails; what came before it is then not a complete answer. The prompt's
    log-probabilities, where they were asked for, are in `prompt_logprobs` from the first token on.
    """

    def __init__(self, call: Iterator[inference_pb2.GenerateResponse]) -> None:
        self._call = call
        self.prompt_logprobs: common_pb2.PromptLogprobs | None = None
        self._ready: deque[Event] = deque()

    def __next__(self) -> Event:
        while not self._ready:
            message = told(lambda: next(self._call))
            self.prompt_logprobs = explained(message) or self.prompt_logprobs
            self._ready.extend(events(message))
        return self._ready.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._call.cancel()  # type: ignore[attr-defined]  # gRPC's iterators are calls


class Client:
    """Talks to the gateway at `target`, host:port. Safe to use from several threads.

    `timeout` is in seconds, from the call to the end of its answer; None leaves it to the gateway's own limit. Every
    failure is a `BatonError`, also that nobody listens. Nothing is sent twice: after `Unavailable` and its like the
    caller knows whether the answer is still wanted and what it may cost; `retry_after` says when to ask again. Without
    `credentials` nothing is encrypted and nobody shown.
    """

    def __init__(self, target: str, credentials: Credentials | None = None) -> None:
        shown = credentials or Credentials()
        metadata = shown.metadata
        secure = shown.of_channel
        if secure is None:
            self._channel = grpc.insecure_channel(target)
        else:
            self._channel = grpc.secure_channel(target, secure, options=shown.options)
        # The generated stubs serve both kinds of channel, but are typed for asyncio's.
        inference: Any = inference_pb2_grpc.InferenceStub(self._channel)  # type: ignore[arg-type]
        mesh: Any = mesh_pb2_grpc.MeshStub(self._channel)  # type: ignore[arg-type]
        self._inference, self._mesh = showing(inference, metadata), showing(mesh, metadata)
        self.sessions = Sessions(self._channel, metadata)

    def generate(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Stream:
        """Begin an answer. Iterate it, and close it when you stop before its end."""
        request = generate_request(model, prompt, timeout, options)
        return Stream(self._inference.Generate(request, timeout=timeout))

    def complete(
        self, model: str, prompt: Prompt, *, timeout: float | None = None, **options: Unpack[Options]
    ) -> Answer:
        """The whole answer at once."""
        with self.generate(model, prompt, timeout=timeout, **options) as stream:
            answer = whole(stream)
        return replace(answer, prompt_logprobs=stream.prompt_logprobs)

    def count_tokens(self, model: str, prompt: Prompt, *, timeout: float | None = None) -> int:
        request = count_request(model, prompt)
        response: inference_pb2.CountTokensResponse = told(
            lambda: self._inference.CountTokens(request, timeout=timeout)
        )
        return response.tokens

    def list_models(self, *, timeout: float | None = None) -> list[inference_pb2.Model]:
        request = inference_pb2.ListModelsRequest()
        response: inference_pb2.ListModelsResponse = told(lambda: self._inference.ListModels(request, timeout=timeout))
        return list(response.models)

    def topology(self, *, timeout: float | None = None) -> mesh_pb2.View:
        """The workers that serve now."""
        request = mesh_pb2.TopologyRequest()
        response: mesh_pb2.TopologyResponse = told(lambda: self._mesh.Topology(request, timeout=timeout))
        return response.view

    def explain_route(
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
        response: mesh_pb2.ExplainRouteResponse = told(lambda: self._mesh.ExplainRoute(request, timeout=timeout))
        return response

    def drain(self, worker: str, grace: float, *, timeout: float | None = None) -> None:
        """Have a worker leave the mesh within `grace` seconds; the topology tells how far that is."""
        request = mesh_pb2.DrainRequest(worker=worker, grace_ms=round(grace * 1000))
        told(lambda: self._mesh.Drain(request, timeout=timeout))

    def close(self) -> None:
        """Ends every answer that is still on its way."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
