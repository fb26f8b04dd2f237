"""Who calls: the roles of a mesh, and how a certificate's name says one. Never looks at a certificate or a key."""

import enum
import re
from dataclasses import dataclass

from runtime.ids import TenantId

_TENANT = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


class Role(enum.StrEnum):
    CONTROLLER = "controller"
    GATEWAY = "gateway"
    PREFILL = "prefill"
    DECODE = "decode"
    CLIENT = "client"
    ADMIN = "admin"


MEMBERS = (Role.CONTROLLER, Role.GATEWAY, Role.PREFILL, Role.DECODE)
"""Those that a mesh consists of; they listen, so their certificates name servers as well."""


@dataclass(frozen=True, slots=True)
class Caller:
    """`role` is None where nobody has to show who he is; a client has a `tenant`."""

    role: Role | None = None
    tenant: TenantId | None = None


ANYBODY = Caller()


def name_of(mesh: str, caller: Caller) -> str:
    """The URI in its certificate, in the manner of SPIFFE."""
    assert caller.role is not None
    tenant = f"/{caller.tenant}" if caller.tenant is not None else ""
    return f"spiffe://{mesh}.baton/{caller.role}{tenant}"


def server_name(mesh: str, role: Role) -> str:
    """What members call a server of this role, wherever it listens: they look for a role and not for a machine."""
    return f"{role}.{mesh}.baton"


def named(mesh: str, uri: str) -> Caller | None:
    """The caller that a certificate's URI names in this mesh; None when it names nobody here."""
    opening = f"spiffe://{mesh}.baton/"
    role, slash, tenant = uri.removeprefix(opening).partition("/")
    if not uri.startswith(opening) or role not in set(Role):
        return None
    if role == Role.CLIENT:
        return Caller(Role.CLIENT, TenantId(tenant)) if _TENANT.fullmatch(tenant) else None
    return Caller(Role(role)) if not slash else None
