"""`baton session`: the conversations that a mesh keeps."""

import os
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from batonmesh import Client
from runtime.cli.talk.asking import follow
from runtime.cli.talk.connecting import DEFAULT_TARGET, Target, connected
from runtime.cli.talk.keeping import expiry_in_words, holding_in_words, policies_in_words, spending_table, tokens_spent
from runtime.cli.talk.wording import kv_in_words, speed_in_words
from runtime.wire.keeping import unpack_state
from runtime.wire.session import unpack_holding

app = typer.Typer(no_args_is_help=True)

_Session = Annotated[str, typer.Argument(metavar="ID", help="The session's id, as `baton session list` shows it.")]
_Branch = Annotated[str, typer.Option(help="Which branch of it.")]
_PAGE = 1000
_LINE = 160
_PIECE = 1 << 20


@app.command("list")
def list_sessions(
    target: Target = DEFAULT_TARGET,
    limit: Annotated[int, typer.Option(min=1, max=_PAGE, help="So many at most.")] = 20,
) -> None:
    """The sessions that the mesh keeps, the newest first."""
    with connected(target) as (client, _):
        table = Table("session", "model", "created", "metadata", "turns", "tokens", "expires", box=None)
        for session in client.sessions.newest(limit=limit):
            about = ", ".join(f"{key}={value}" for key, value in sorted(session.metadata.items()))
            account, _ = unpack_state(session)
            spent = f"{account.used.turns:,}", f"{tokens_spent(account.used):,}", expiry_in_words(account)
            table.add_row(session.id, session.model, _when(session.created_ms), about, *spent)
    Console(soft_wrap=True, highlight=False, width=max(Console().width, _LINE)).print(table)


@app.command()
def show(session: _Session, target: Target = DEFAULT_TARGET, branch: _Branch = "main") -> None:
    """A session's branches, and what was said on one of them."""
    console = Console(soft_wrap=True, highlight=False)
    with connected(target) as (client, _):
        state = client.sessions.get(session)
        console.print(Text(f"{state.id}, {state.model}, {_when(state.created_ms)}"))
        account, policies = unpack_state(state)
        kept = f"version {account.version}, expires {expiry_in_words(account)}; {policies_in_words(policies)}"
        console.print(Text(kept))
        console.print(spending_table(account))
        table = Table("branch", "turns", "tokens", "head", "running", "kept", box=None)
        for each in state.branches:
            kept = holding_in_words(unpack_holding(each))
            table.add_row(each.name, f"{each.turns:,}", f"{each.tokens:,}", each.head, each.running, kept)
        console.print(table)
        after = 0
        while page := client.sessions.items(session, branch=branch, after=after, limit=_PAGE):
            for item in page:
                role = Text(f"{item.message.role}  ", "bold cyan" if item.message.role == "user" else "bold green")
                console.print(role + Text(item.message.content.strip(), style="default"))
            after = page[-1].number


@app.command()
def tail(session: _Session, target: Target = DEFAULT_TARGET, branch: _Branch = "main") -> None:
    """Show the turn that runs now, from its beginning to its end."""
    console = Console(soft_wrap=True, highlight=False)
    with connected(target) as (client, _):
        running = [each.running for each in client.sessions.get(session).branches if each.name == branch]
        if not any(running):
            console.print(Text(f"No turn runs on branch {branch}.", style="dim"))
            return
        reply = follow(client.sessions.resume(session, running[0]), _write)
        _write("\n")
        console.print(Text("; ".join((speed_in_words(reply), *kv_in_words(reply.handoff))), style="dim"))


@app.command()
def fork(
    session: _Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the new branch is called.")],
    target: Target = DEFAULT_TARGET,
    branch: _Branch = "main",
    turn: Annotated[str | None, typer.Option(help="The last turn that both have; by default the head.")] = None,
) -> None:
    """Begin a new branch where another one is, or was."""
    with connected(target) as (client, _):
        made = client.sessions.fork(session, name, branch=branch, turn=turn)
    typer.echo(f"Branch {made.name} begins after {made.turns} turns, with {made.tokens:,} tokens.")


@app.command()
def rollback(
    session: _Session,
    turns: Annotated[int, typer.Argument(min=1, metavar="TURNS", help="How many turns to take back.")],
    target: Target = DEFAULT_TARGET,
    branch: _Branch = "main",
) -> None:
    """Take the last turns of a branch back."""
    with connected(target) as (client, _):
        back = client.sessions.rollback(session, _turn_before(client, session, branch, turns), branch=branch)
    typer.echo(f"Branch {back.name} has {back.turns} turns and {back.tokens:,} tokens now.")


@app.command()
def delete(
    session: _Session,
    target: Target = DEFAULT_TARGET,
    branch: Annotated[str | None, typer.Option(help="Only this branch, and what was said on no other.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
) -> None:
    """Forget a session and all that was said in it, or a branch of it."""
    what = session if branch is None else f"branch {branch} of {session}"
    with connected(target) as (client, _):
        client.sessions.get(session)
        if not yes:
            typer.confirm(f"Forget {what} for ever?", abort=True)
        if branch is None:
            client.sessions.delete(session)
        else:
            client.sessions.delete_branch(session, branch)
    typer.echo(f"{what} is deleted.")


@app.command()
def erase(
    session: _Session,
    target: Target = DEFAULT_TARGET,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask first.")] = False,
) -> None:
    """Forget a session everywhere, its data key too, and tell what became of it where it was kept."""
    with connected(target) as (client, _):
        if not yes:
            client.sessions.get(session)
            typer.confirm(f"Erase {session} everywhere, for ever?", abort=True)
        erased = client.sessions.erase(session)
    table = Table("kept by", "erased", "left to others", "", box=None)
    for receipt in erased.receipts:
        what = "pages" if receipt.boot else "rows"
        done = (
            ""
            if receipt.done
            else ("has not answered yet" if receipt.boot else "its files still hold unreadable remains")
        )
        table.add_row(receipt.store, f"{receipt.erased:,} {what}", f"{receipt.shared:,}" if receipt.boot else "", done)
    typer.echo(f"{session} was erased at {_when(erased.erased_ms)}.")
    Console(soft_wrap=True, highlight=False).print(table)


@app.command("export")
def export_session(
    session: _Session,
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="Where to write it; must not be there.")],
    target: Target = DEFAULT_TARGET,
) -> None:
    """Write a session into one file, which only you may read: it is not encrypted."""
    written = 0
    with connected(target) as (client, _):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise typer.BadParameter(f"{file} cannot be written: {error.strerror}") from error
        try:
            with os.fdopen(descriptor, "wb") as target_file:
                for piece in client.sessions.export(session):
                    written += target_file.write(piece)
        except BaseException:
            file.unlink()  # half of it is of no use to anybody
            raise
    typer.echo(f"{file} has {session}, {written:,} bytes.")


@app.command("import")
def import_session(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="As `export` wrote it.")],
    target: Target = DEFAULT_TARGET,
) -> None:
    """Take a session in from a file, under the id that it has there."""
    with connected(target) as (client, _), file.open("rb") as source:
        state = client.sessions.import_(iter(partial(source.read, _PIECE), b""))
    branches = ", ".join(f"{each.name} with {each.turns:,} turns" for each in state.branches)
    typer.echo(f"{state.id} is here: {branches}.")


def _turn_before(client: Client, session: str, branch: str, turns: int) -> str:
    """The turn that is the head once so many are taken back; "" for the beginning."""
    found = next((each for each in client.sessions.get(session).branches if each.name == branch), None)
    if found is None or turns > found.turns:
        had = 0 if found is None else found.turns
        raise typer.BadParameter(f"branch {branch} has {had} turns, {turns} cannot be taken back")
    order: dict[str, None] = {}
    after = 0
    while page := client.sessions.items(session, branch=branch, after=after, limit=_PAGE):
        order |= dict.fromkeys(item.turn for item in page)
        after = page[-1].number
    return [*order][-turns - 1] if turns < found.turns else ""


def _write(text: str) -> None:
    typer.echo(text, nl=False)
    sys.stdout.flush()


def _when(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
