"""Who may call what: one table of all calls, and how a caller shows who he is. Never knows what a call does."""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import grpc

from runtime.domain.identity import ANYBODY, Caller, Role, named
from runtime.errors import PermissionDenied, Unauthenticated
from runtime.ids import TenantId
from runtime.services.keys import KeyRing

_Context = grpc.aio.ServicerContext[Any, Any]

_USERS = frozenset({Role.CLIENT, Role.ADMIN})
_OPERATORS = frozenset({Role.ADMIN})
_WORKERS = frozenset({Role.PREFILL, Role.DECODE})
CALLERS: Mapping[str, frozenset[Role]] = {
    "/batonmesh.v1.Inference/Generate": _USERS,
    "/batonmesh.v1.Inference/CountTokens": _USERS,
    "/batonmesh.v1.Inference/ListModels": _USERS,
    "/batonmesh.v1.Sessions/CreateSession": _USERS,
    "/batonmesh.v1.Sessions/GetSession": _USERS,
    "/batonmesh.v1.Sessions/ListSessions": _USERS,
    "/batonmesh.v1.Sessions/DeleteSession": _USERS,
    "/batonmesh.v1.Sessions/RunTurn": _USERS,
    "/batonmesh.v1.Sessions/ResumeTurn": _USERS,
    "/batonmesh.v1.Sessions/CancelTurn": _USERS,
    "/batonmesh.v1.Sessions/ListItems": _USERS,
    "/batonmesh.v1.Sessions/Fork": _USERS,
    "/batonmesh.v1.Sessions/Rollback": _USERS,
    "/batonmesh.v1.Sessions/UpdateSession": _USERS,
    "/batonmesh.v1.Sessions/WatchSession": _USERS,
    "/batonmesh.v1.Sessions/DeleteBranch": _USERS,
    "/batonmesh.v1.Sessions/Erase": _USERS,
    "/batonmesh.v1.Sessions/Export": _USERS,
    "/batonmesh.v1.Sessions/Import": _USERS,
    "/batonmesh.v1.Sessions/SubmitToolResults": _USERS,
    "/batonmesh.v1.Sessions/ListToolCalls": _USERS,
    "/batonmesh.v1.Mesh/Topology": _OPERATORS,
    # It tells what caches hold of a tenant's prompt.
    "/batonmesh.v1.Mesh/ExplainRoute": _OPERATORS,
    # Gateways hand it on to the controller.
    "/batonmesh.v1.Mesh/Drain": _OPERATORS | {Role.GATEWAY},
    "/batonmesh.v1.Registry/Register": _WORKERS,
    "/batonmesh.v1.Registry/Leave": _WORKERS,
    # Prefill workers connect to the decode workers beforehand.
    "/batonmesh.v1.Registry/Watch": frozenset({Role.GATEWAY, Role.PREFILL}),
    "/batonmesh.v1.Decode/Attach": frozenset({Role.GATEWAY}),
    "/batonmesh.v1.Erasure/ForgetSession": frozenset({Role.GATEWAY}),
    "/batonmesh.v1.Prefill/Prefill": frozenset({Role.DECODE}),
    "/batonmesh.v1.Pages/WatchPages": frozenset({Role.GATEWAY}),
    "/batonmesh.v1.Kv/Push": _WORKERS,
    "/batonmesh.v1.Kv/Commit": _WORKERS,
    "/batonmesh.v1.Kv/Abort": _WORKERS,
    "/batonmesh.v1.Mirror/Keep": frozenset({Role.DECODE}),
    "/batonmesh.v1.Mirror/Fetch": _WORKERS,
    "/batonmesh.v1.Nixl/Meet": frozenset({Role.PREFILL}),
    "/batonmesh.v1.Nixl/Write": frozenset({Role.PREFILL}),
    "/batonmesh.v1.Nixl/Silence": frozenset({Role.DECODE}),
}
"""What is not here nobody may call. Health and reflection are everybody's who gets through the handshake."""

_BEARER = "bearer "
_calling: ContextVar[Caller] = ContextVar("calling", default=ANYBODY)


def calling() -> Caller:
    """Whose call this is, for whoever handles it."""
    return _calling.get()


def called_by(caller: Caller) -> None:
    """Tell whoever handles this call."""
    _calling.set(caller)


class Showing(Protocol):
    """A way to show who one is."""

    def caller(self, context: _Context) -> Caller:
        """Raises `Unauthenticated`, or `PermissionDenied` when who it is has no business here at all."""


class ByCertificate:
    """By the URI in the certificate that the handshake has verified."""

    def __init__(self, mesh: str, tenants: Sequence[TenantId] = ()) -> None:
        self._mesh = mesh
        self._tenants = frozenset(tenants)

    def caller(self, context: _Context) -> Caller:
        uris = tuple(context.auth_context().get("peer_spiffe_id", ()))
        caller = named(self._mesh, uris[0].decode(errors="replace")) if len(uris) == 1 else None
        if caller is None:
            raise Unauthenticated("the certificate names no role in this mesh")
        if caller.tenant is not None and caller.tenant not in self._tenants:
            raise PermissionDenied("the tenant of this certificate is not served here")
        return caller


class ByKey:
    """By an API key in the metadata `authorization`, as HTTP has it."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    def caller(self, context: _Context) -> Caller:
        return self.caller_of(_authorization(context))

    def caller_of(self, authorization: str) -> Caller:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated("an API key is needed: `authorization: Bearer KEY`")
        return self._keys.caller(authorization[len(_BEARER) :].strip())


class ByKeyOrNothing:
    """As `ByKey`; who shows no key is a client of `tenant`."""

    def __init__(self, keys: KeyRing, tenant: TenantId) -> None:
        self._keys = ByKey(keys)
        self._anybody = Caller(Role.CLIENT, tenant)

    def caller(self, context: _Context) -> Caller:
        sent = _authorization(context)
        return self._keys.caller_of(sent) if sent else self._anybody


def _authorization(context: _Context) -> str:
    sent = [value for name, value in context.invocation_metadata() or () if name == "authorization"]
    return sent[0] if len(sent) == 1 and isinstance(sent[0], str) else ""


class Access:
    """The table, for those who show themselves in one way."""

    def __init__(self, showing: Showing) -> None:
        self._showing = showing

    def admit(self, method: str, context: _Context) -> None:
        """Raises `Unauthenticated` or `PermissionDenied`; else the caller is known from now on."""
        caller = self._showing.caller(context)
        if caller.role not in CALLERS.get(method, frozenset()):
            raise PermissionDenied(f"the role {caller.role} may not call {method}")
        called_by(caller)
