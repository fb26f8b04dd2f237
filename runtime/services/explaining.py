"""`batonmesh.v1.Mesh` as gateways serve it: they also tell how they would place a prompt."""

from collections.abc import Awaitable, Callable, Sequence

from batonmesh.v1 import mesh_pb2 as pb
from runtime.errors import InvalidArgument, NotFound
from runtime.ids import TenantId, WorkerId
from runtime.roles.gateway import GatewayRole, ServedModel
from runtime.services.guard import Context
from runtime.services.mesh import MeshService
from runtime.services.prompts import Prompts
from runtime.wire import fields
from runtime.wire.routing import pack_explained

# No tenant has this name, and so nobody holds a page of his.
_NOBODY = TenantId("")
_USUAL_ANSWER = 256


class GatewayMeshService(MeshService):
    """`tenants` are those that are served; a request that names none is of the first."""

    def __init__(
        self,
        role: GatewayRole,
        drain: Callable[[WorkerId, float], Awaitable[None]],
        prompts: Prompts,
        tenants: Sequence[TenantId],
    ) -> None:
        super().__init__(role.view, drain)
        self._role = role
        self._prompts = prompts
        self._tenants = tenants

    async def ExplainRoute(self, request: pb.ExplainRouteRequest, _context: Context) -> pb.ExplainRouteResponse:
        model = self._prompts.model(request.model)
        tenant = TenantId(fields.text(request.tenant, "tenant", 128)) or self._tenants[0]
        if tenant not in self._tenants:
            raise NotFound(f"tenant {tenant!r} is not served here", field="tenant")
        more = fields.at_least(1, request.max_tokens, "max_tokens") if request.HasField("max_tokens") else _USUAL_ANSWER
        tokens: Sequence[int]
        if request.WhichOneof("of") == "tokens":
            tenant, tokens = _NOBODY, range(_length(request.tokens, model))
        else:
            tokens = await self._prompts.tokens(model, request.prompt)
            _length(len(tokens), model, "prompt")
        return pack_explained(len(tokens), self._role.explain(tenant, tokens, more))


def _length(tokens: int, model: ServedModel, field: str = "tokens") -> int:
    limit = model.spec.max_tokens
    if 1 <= tokens <= limit:
        return tokens
    raise InvalidArgument(f"a prompt has 1 to {limit} tokens, {field} asks for {tokens}", field=field)
