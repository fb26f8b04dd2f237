"""`batonmesh.v1.Inference`: what users call by gRPC. Translates, tokenizes, delegates."""

import asyncio
import uuid
from dataclasses import dataclass, replace

import grpc

from batonmesh.v1 import inference_pb2 as pb
from batonmesh.v1 import inference_pb2_grpc
from runtime.domain.generation import Delta, Generation
from runtime.domain.tools import Toolbox, ToolCall, check_toolbox
from runtime.errors import BatonError
from runtime.ids import TenantId
from runtime.pacing import let_others_run
from runtime.roles.calls import CallReader, equipped, form_of
from runtime.roles.gateway import GatewayRole, ServedModel
from runtime.services.access import calling
from runtime.services.banning import banned_spellings
from runtime.services.choices import Arrivals, check_choices, give_choices
from runtime.services.guard import Context
from runtime.services.openai.tokenizing import TokenizingPool
from runtime.services.prompts import INLINE_BYTES, Prompts
from runtime.wire import fields
from runtime.wire.inference import Answer, pack_model
from runtime.wire.sequence import unpack_sampling
from runtime.wire.tools import unpack_tools


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """`tenant` is whose requests are that show no tenant. `deadline_s` bounds every request, also one that names no
    deadline. Prompts of more than `inline_bytes` are tokenized off the event loop."""

    tenant: TenantId
    deadline_s: float = 600.0
    inline_bytes: int = INLINE_BYTES


class InferenceService(inference_pb2_grpc.InferenceServicer):
    name = pb.DESCRIPTOR.services_by_name["Inference"].full_name

    def __init__(self, role: GatewayRole, pool: TokenizingPool, settings: InferenceSettings) -> None:
        self._role = role
        self._prompts = Prompts(role, pool, settings.inline_bytes)
        self._settings = settings

    def add_to(self, server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServicer_to_server(self, server)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]  # as Guard says
        count = request.n if request.HasField("n") else 1
        candidates = request.best_of if request.HasField("best_of") else count
        check_choices(count, candidates)
        toolbox = self._toolbox(request.tools, self._prompts.model(request.model))
        generation = await self._generation(request, toolbox, context)
        readers = self._readers(request.model, toolbox, count)
        answer = Answer(len(generation.prompt), count, logprobs=generation.sampling.logprobs is not None)

        async def give(arrivals: Arrivals) -> None:
            async for first in arrivals:
                together, failed = await gather(first, arrivals)
                shown, calls = _read(readers, together)
                await context.write(answer.pack(shown, arrivals.withheld, calls))
                if failed is not None:
                    raise failed
                if not answer.complete:
                    await let_others_run()

        await give_choices(self._role, generation, count, candidates, give)

    async def CountTokens(self, request: pb.CountTokensRequest, _context: Context) -> pb.CountTokensResponse:
        model = self._prompts.model(request.model)
        toolbox = self._toolbox(request.tools, model)
        return pb.CountTokensResponse(tokens=len(await self._prompts.tokens(model, request.prompt, toolbox)))

    async def ListModels(self, _request: pb.ListModelsRequest, _context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pack_model(model.spec, model.created) for model in self._role.models()])

    def _toolbox(self, message: pb.Tools, model: ServedModel) -> Toolbox:
        """Raises `InvalidArgument` naming the field at fault, and `NotSupported` for a model that is given none."""
        toolbox = unpack_tools(message)
        check_toolbox(toolbox)
        if toolbox.callable:
            form_of(model.tokenizer)
        return toolbox

    def _readers(self, model: str, toolbox: Toolbox, count: int) -> list[CallReader]:
        """One for each answer; none when nothing can be called."""
        tokenizer, ident = self._prompts.model(model).tokenizer, uuid.uuid4().hex
        return [CallReader(tokenizer, toolbox, f"{ident}/{choice}") for choice in range(count * toolbox.callable)]

    async def _generation(self, request: pb.GenerateRequest, toolbox: Toolbox, context: Context) -> Generation:
        model = self._prompts.model(request.model)
        limit = model.spec.max_tokens
        clock = asyncio.get_running_loop().time
        ends = clock() + self._deadline_s(request, context)
        sampling = unpack_sampling(request.sampling, max_tokens=limit, seed=self._role.fresh_seed())
        if request.sampling.bad_words:
            banned = sampling.banned_tokens + banned_spellings(request.sampling.bad_words, model.tokenizer)
            sampling = replace(sampling, banned_tokens=banned)
        if toolbox.callable:
            sampling = equipped(sampling, toolbox, model.tokenizer)
        prompt = await self._prompts.tokens(model, request.prompt, toolbox)
        if not request.sampling.HasField("max_tokens"):
            # At least 1, so that a prompt that fills the context is refused as that.
            sampling = replace(sampling, max_tokens=max(limit - len(prompt), 1))
        tenant = calling().tenant or self._settings.tenant
        return Generation(model.spec.name, prompt, sampling, tenant, ends - clock(), request.priority)

    def _deadline_s(self, request: pb.GenerateRequest, context: Context) -> float:
        bounds = [self._settings.deadline_s]
        if request.HasField("deadline_ms"):
            bounds.append(fields.at_least(1, request.deadline_ms, "deadline_ms") / 1000)
        remaining = context.time_remaining()
        if remaining is not None:
            bounds.append(remaining)
        return min(bounds)


async def gather(first: tuple[int, Delta], arrivals: Arrivals) -> tuple[list[tuple[int, Delta]], BatonError | None]:
    """What is ready now, and the error that follows it, if that is ready too."""
    together = [first]
    try:
        while arrivals.ready():
            together.append(await anext(arrivals))
    except BatonError as error:
        return together, error
    return together, None


def _read(
    readers: list[CallReader], together: list[tuple[int, Delta]]
) -> tuple[list[tuple[int, Delta]], list[tuple[int, ToolCall]]]:
    """The deltas with the text beside calls, and the calls that are whole."""
    if not readers:
        return together, []
    shown: list[tuple[int, Delta]] = []
    calls: list[tuple[int, ToolCall]] = []
    for choice, delta in together:
        reader = readers[choice]
        found = reader.push([sampled.token for sampled in delta.tokens], delta.text)
        found += reader.finish() if delta.finish is not None else []
        calls += [(choice, each) for each in found if not isinstance(each, str)]
        text = "".join(each for each in found if isinstance(each, str))
        shown.append((choice, replace(delta, text=text, ends=())))
    return shown, calls
