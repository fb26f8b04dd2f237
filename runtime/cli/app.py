"""The whole `baton` command on one page. What needs Ray (`up`, `down`, `status`) is added by whoever hosts it."""

from importlib import metadata
from typing import Annotated

import typer

from runtime.cli import certs, configuration, keys, model, simtest
from runtime.cli.bench.engine import engine
from runtime.cli.bench.gateway import gateway
from runtime.cli.bench.handoff import handoff
from runtime.cli.bench.recovery import recovery
from runtime.cli.bench.resume import resume
from runtime.cli.bench.router import router
from runtime.cli.bench.session import session as session_bench
from runtime.cli.bench.simtest import simtest as simtest_bench
from runtime.cli.bench.transport import transport
from runtime.cli.doctor.command import doctor
from runtime.cli.face import LOOK, RUN, TALK, Face
from runtime.cli.route import route
from runtime.cli.talk import session
from runtime.cli.talk.chat import chat
from runtime.cli.talk.demo import demo
from runtime.cli.talk.generate import generate

_HELP = """
Baton serves large language models with prefill and decode on different workers, and hands the KV cache from one to the
other like a baton in a relay.

Start with [bold]baton up --demo[/bold]: it starts a mesh on this machine and talks to it.
"""

app = typer.Typer(
    name="baton",
    cls=Face,
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"baton {metadata.version('batonmesh')}")
        raise typer.Exit


@app.callback()
def baton(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(certs.app, name="certs", rich_help_panel=RUN, help="Make and rotate the certificates of a mesh.")
app.add_typer(keys.app, name="keys", rich_help_panel=RUN, help="Make and revoke its clients' API keys.")

app.command(rich_help_panel=TALK)(demo)
app.command(rich_help_panel=TALK)(generate)
app.command(rich_help_panel=TALK)(chat)
app.add_typer(session.app, name="session", rich_help_panel=TALK, help="The conversations that a mesh keeps.")

app.add_typer(configuration.app, name="config", rich_help_panel=LOOK, help="Check a configuration, or show all of it.")
app.add_typer(model.app, name="model", rich_help_panel=LOOK, help="Look at a checkpoint, or examine the shipped model.")
app.command(rich_help_panel=LOOK)(route)
app.command(rich_help_panel=LOOK)(doctor)
app.command(rich_help_panel=LOOK)(simtest.simtest)

bench = typer.Typer(no_args_is_help=True)
bench.command()(handoff)
bench.command()(engine)
bench.command()(gateway)
bench.command()(router)
bench.command()(transport)
bench.command()(resume)
bench.command()(recovery)
bench.command("session")(session_bench)
bench.command("simtest")(simtest_bench)
app.add_typer(
    bench, name="bench", rich_help_panel=LOOK, help="Measure this machine, and say how it stands to what is wanted."
)
