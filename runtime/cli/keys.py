"""`baton keys`: the API keys of a mesh's clients. A key is shown once; what is kept is its hash."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from runtime.config import load_config
from runtime.domain.identity import Caller, Role
from runtime.errors import ConfigError
from runtime.ids import TenantId
from runtime.services.keys import new_key, read_keys, without, write_keys

app = typer.Typer(no_args_is_help=True)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="The mesh's configuration; else the local mesh.")
]


@app.command()
def create(
    tenant: Annotated[str | None, typer.Argument(help="Whose key it is.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="A key to administer the mesh with, of no tenant.")] = False,
    config: ConfigFile = None,
) -> None:
    """Make a key and print it, this once. A running mesh knows it at once."""
    settings = load_config(config)
    tenants = settings.access.tenants
    if admin != (tenant is None):
        raise ConfigError("name a tenant, or say --admin")
    if tenant is not None and tenant not in tenants:
        raise ConfigError(f"access.tenants: {tenant} is not among {', '.join(tenants)}")
    caller = Caller(Role.ADMIN) if tenant is None else Caller(Role.CLIENT, TenantId(tenant))
    key, entry = new_key(caller)
    write_keys(settings.keys, (*read_keys(settings.keys), entry))
    typer.echo(key)


@app.command()
def revoke(
    ident: Annotated[str, typer.Argument(metavar="ID", help="As `baton keys list` shows it.")],
    config: ConfigFile = None,
) -> None:
    """Forget a key. A running mesh refuses it at once; requests that run with it end as they would have."""
    settings = load_config(config)
    write_keys(settings.keys, without(read_keys(settings.keys), ident))


@app.command("list")
def listed(config: ConfigFile = None) -> None:
    """Show whose keys there are: their ids, never the keys."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("id", "role", "tenant"):
        table.add_column(column, no_wrap=True)
    for entry in read_keys(load_config(config).keys):
        table.add_row(entry.id, str(entry.role), entry.tenant or "")
    Console().print(table)
