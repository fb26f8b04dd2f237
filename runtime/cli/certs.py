"""`baton certs`: the mesh's own certificate authority, and the certificates of its members and clients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from runtime.config import Config, load_config
from runtime.domain.identity import MEMBERS, Caller, Role
from runtime.errors import ConfigError
from runtime.ids import TenantId
from runtime.mesh.authority import LOCAL_HOSTS, Authority, Issued, issued
from runtime.pem import AUTHORITIES

app = typer.Typer(no_args_is_help=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="The mesh's configuration; else the local mesh.")
]
_Days = Annotated[int, typer.Option(min=1, max=3650, help="How long the certificates last.")]
_Hosts = Annotated[list[str], typer.Option("--host", help="A name or address under which clients look for it.")]


@app.command()
def init(config: ConfigFile = None, host: _Hosts = [], days: _Days = 90) -> None:  # noqa: B006 - as typer wants it
    """Make an authority, and certificates for all members and one to administer the mesh with."""
    settings = load_config(config)
    authority = Authority.create(settings.certificates, settings.mesh.name)
    made = [authority.issue(Caller(role), _hosts(role, host, settings), days) for role in (*MEMBERS, Role.ADMIN)]
    _tell(made)
    typer.echo("Every node needs ca.pem and the files of its roles, in this folder; ca.key may be kept elsewhere.")


@app.command()
def issue(
    role: Annotated[Role, typer.Argument(help="Whom the certificate is for.")],
    tenant: Annotated[str | None, typer.Argument(help="Of which tenant a client is.")] = None,
    config: ConfigFile = None,
    host: _Hosts = [],  # noqa: B006 - as typer wants it
    days: _Days = 90,
) -> None:
    """Issue one certificate, with a key of its own, in one file; it replaces the one before."""
    settings = load_config(config)
    if (role is Role.CLIENT) != (tenant is not None):
        raise ConfigError("a client is of a tenant, and only a client is")
    if tenant is not None and tenant not in settings.access.tenants:
        raise ConfigError(f"access.tenants: {tenant} is not among {', '.join(settings.access.tenants)}")
    caller = Caller(role, TenantId(tenant) if tenant is not None else None)
    authority = Authority(settings.certificates, settings.mesh.name)
    _tell([authority.issue(caller, _hosts(role, host, settings), days)])


@app.command()
def rotate(
    config: ConfigFile = None,
    authority: Annotated[
        bool, typer.Option("--authority", help="Instead make a new authority, trusted beside the one before.")
    ] = False,
    days: _Days = 90,
) -> None:
    """Issue all certificates anew, with new keys. A running mesh takes up by itself whatever is replaced.

    The authority is replaced by --authority, then by a rotation of the certificates once everybody has the new ca.pem;
    the next --authority ends the trust in the one before.
    """
    settings = load_config(config)
    current = Authority(settings.certificates, settings.mesh.name)
    if authority:
        current.succeed()
        typer.echo(f"Give everybody {settings.certificates / AUTHORITIES}, clients too; then rotate the certificates.")
        return
    _tell(current.rotate(days))


@app.command("list")
def listed(config: ConfigFile = None) -> None:
    """Show the certificates that are there, and when they end."""
    settings = load_config(config)
    _tell(issued(settings.certificates, settings.mesh.name))


def _hosts(role: Role, hosts: Sequence[str], config: Config) -> tuple[str, ...]:
    """Clients look for a gateway by its host; members know each other by their roles."""
    if role is not Role.GATEWAY:
        return tuple(hosts)
    anywhere = ("0.0.0.0", "::")
    own = () if config.gateway.host in anywhere else (config.gateway.host,)
    return tuple(dict.fromkeys((*LOCAL_HOSTS, *own, *hosts)))


def _tell(certificates: Sequence[Issued]) -> None:
    for each in certificates:
        hosts = f", found at {', '.join(each.hosts)}" if each.hosts else ""
        typer.echo(f"{each.file}: {_whose(each.caller)}, until {each.ends:%Y-%m-%d}{hosts}")


def _whose(caller: Caller) -> str:
    return str(caller.role) if caller.tenant is None else f"{caller.role} of {caller.tenant}"
