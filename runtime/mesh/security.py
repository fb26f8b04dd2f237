"""What a configuration makes of TLS and access: for the servers and channels of members, and in words at the start.

Where neither is asked for there is none of it, and only then.
"""

from datetime import UTC, datetime

from batonmesh import Credentials
from runtime.clients.channels import MemberTls
from runtime.config import Config
from runtime.domain.identity import MEMBERS, Role, server_name
from runtime.errors import StartError
from runtime.ids import TenantId
from runtime.mesh.authority import read_issued
from runtime.pem import AUTHORITIES, PemFiles
from runtime.protection import is_loopback
from runtime.services.access import Access, ByCertificate, ByKey, ByKeyOrNothing
from runtime.services.keys import KeyRing, admin_key
from runtime.services.server import Tls


class Security:
    """Of one process, which is a member of the mesh in a role."""

    def __init__(self, config: Config, role: Role) -> None:
        """Raises `StartError` naming the file that is not there or makes no sense."""
        self._config = config
        self._files = PemFiles(config.certificates, role) if config.tls.enabled else None

    def channels(self) -> MemberTls | None:
        return MemberTls(self._files, self._config.mesh.name) if self._files is not None else None

    def members_door(self) -> Tls | None:
        """For a port that only members use."""
        return Tls(self._files) if self._files is not None else None

    def members(self) -> Access | None:
        return Access(ByCertificate(self._config.mesh.name)) if self._files is not None else None

    def clients_door(self) -> Tls | None:
        """For the gateway's port: gRPC either demands a certificate of everybody or looks at nobody's."""
        return Tls(self._files, mutual=self._config.clients == "certificates") if self._files is not None else None

    def clients(self) -> Access | None:
        """Who may use the gateway's gRPC API; None lets everybody. An open mesh is open to clients: beyond this machine
        an operator shows a key there too."""
        match self._config.clients:
            case "open" if is_loopback(self._config.gateway.host):
                return None
            case "open":
                return Access(ByKeyOrNothing(KeyRing(self._config.keys, self._tenants()), self._tenants()[0]))
            case "certificates":
                return Access(ByCertificate(self._config.mesh.name, self._tenants()))
            case "keys":
                return Access(ByKey(KeyRing(self._config.keys, self._tenants())))

    def http(self) -> KeyRing | None:
        """The keys that the HTTP API wants; None lets everybody."""
        return None if self._config.clients == "open" else KeyRing(self._config.keys, self._tenants())

    def _tenants(self) -> tuple[TenantId, ...]:
        return tuple(map(TenantId, self._config.access.tenants))


def check_security(config: Config) -> None:
    """Raises `StartError` when a certificate that the mesh needs is not there, is of another mesh, or has expired."""
    if not config.tls.enabled:
        return
    for role in MEMBERS:
        PemFiles(config.certificates, role)
        file = config.certificates / f"{role}.pem"
        found = read_issued(file, config.mesh.name)
        if found is None or found.caller.role is not role:
            raise StartError(f"tls.folder: {file} is no {role}'s certificate of the mesh {config.mesh.name}")
        if found.ends <= datetime.now(UTC):
            raise StartError(f"tls.folder: {file} expired on {found.ends:%Y-%m-%d}; `baton certs rotate` renews it")


def check_listening(config: Config, host: str) -> None:
    """Raises `StartError` when members would listen unencrypted on the network and nobody said that they may."""
    if not (config.tls.enabled or config.tls.plaintext == "everywhere" or is_loopback(host)):
        how = "set tls.enabled, or tls.plaintext to everywhere"
        raise StartError(f"tls.enabled: workers would listen on {host} unencrypted: {how}")


def own_credentials(config: Config) -> Credentials:
    """What whoever started the mesh shows its gateway. Raises `StartError` naming the file that is not there."""
    try:
        authorities = (config.certificates / AUTHORITIES).read_bytes() if config.tls.enabled else None
        name = server_name(config.mesh.name, Role.GATEWAY) if config.tls.enabled else None
        match config.clients:
            case "open" if is_loopback(config.gateway.host):
                return Credentials(authorities, server_name=name)
            case "certificates":
                return Credentials(authorities, (config.certificates / f"{Role.ADMIN}.pem").read_bytes(), None, name)
            case "open" | "keys":
                return Credentials(authorities, None, admin_key(config.keys, config.state), name)
    except OSError as error:
        raise StartError(f"tls.folder: {error.filename}: {error.strerror}; `baton certs` makes it") from error


def in_words(config: Config) -> str:
    """What holds, for whoever starts the mesh."""
    tls, clients = config.tls, config.clients
    if not tls.enabled:
        where = "on the network too" if tls.plaintext == "everywhere" else "on this machine only"
        how = f"TLS is off: everything is unencrypted, {where}"
    else:
        http = ", the HTTP API is unencrypted on the network" if tls.plaintext == "http" else ""
        how = f"mutual TLS between all members{http}"
    who = {"open": "anybody may ask", "keys": "clients show API keys", "certificates": "clients show certificates"}
    return f"{how}; {who[clients]}"
