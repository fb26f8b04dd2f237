"""`baton chat`: a conversation line by line, on a session. The mesh keeps it; it can be left and gone on with."""

import readline  # noqa: F401 - gives input() its editing and its history
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import batonmesh
from batonmesh import Client, Options, TurnOptions, TurnStream
from runtime.cli.face import complain
from runtime.cli.talk.asking import Reply, follow
from runtime.cli.talk.connecting import DEFAULT_TARGET, Model, Target, connected
from runtime.cli.talk.wording import kv_in_words, speed_in_words
from runtime.errors import NotFound

_FRESH = "/new"
_REMEMBERED = 6
# Whoever types does not wait for an answer that was left behind.
_TURN: TurnOptions = {"on_conflict": "interrupt"}


def chat(
    target: Target = DEFAULT_TARGET,
    model: Model = None,
    session: Annotated[str | None, typer.Option(metavar="ID", help="Go on with this session.")] = None,
    last: Annotated[bool, typer.Option("--last", help="Go on with the newest session.")] = False,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer, at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token always.")] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not tell what happened for each answer.")] = False,
) -> None:
    """Talk line by line. Ctrl-C stops an answer, Ctrl-D ends, /new starts the conversation over.

    The mesh keeps the conversation, also when it is stopped and started again: --last goes on with it.
    """
    with connected(target, model) as (client, name):
        console = Console(soft_wrap=True, highlight=False)
        console.print(Text(f"{name} at {target}. Ctrl-C stops an answer, Ctrl-D ends, {_FRESH} starts over.", "dim"))
        options: Options = {"max_tokens": max_tokens, "temperature": temperature}
        conversation = Conversation(client, name, system, options, console, quiet=quiet)
        if session or last:
            conversation.go_on(session or _newest(client))
        while (line := _read(console)) is not None:
            if line == _FRESH:
                conversation.start_over()
                console.print(Text("A new conversation.", "dim"))
            elif line:
                conversation.say(line)
        if conversation.session and not quiet:
            console.print(Text(f"Go on with: baton chat --session {conversation.session}", style="dim"))


class Conversation:
    """`session` is where it is kept, made with the first line. A question that failed is forgotten; an answer that was
    stopped stays as far as it came."""

    def __init__(
        self, client: Client, model: str, system: str | None, options: Options, console: Console, *, quiet: bool
    ) -> None:
        self._client = client
        self._model = model
        self._system = system
        self._options = options
        self._console = console
        self._quiet = quiet
        self.start_over()

    def start_over(self) -> None:
        self.session = ""
        self._opening = [{"role": "system", "content": self._system}] if self._system else []

    def go_on(self, session: str) -> None:
        """Show the end of what was said in a session, and go on there. Raises `NotFound`."""
        state = self._client.sessions.get(session)
        self.session, self._opening = state.id, []
        (main,) = [branch for branch in state.branches if branch.name == "main"]
        # A turn brings two items at least.
        said = self._client.sessions.items(session, after=max(2 * main.turns - _REMEMBERED, 0))
        for item in said[-_REMEMBERED:]:
            mark = Text("> ", "bold cyan") if item.message.role == "user" else Text("")
            self._console.print(mark + Text(item.message.content, style="dim"))

    def say(self, line: str) -> None:
        self.session = self.session or self._made()
        items = [*self._opening, {"role": "user", "content": line}]
        stream = self._client.sessions.run(self.session, items, turn=_TURN, **self._options)
        try:
            told = self._told(self._follow(stream))
        except batonmesh.BatonError as error:
            self._console.print()
            complain(error.message)
            return
        self._opening = []
        self._console.print()
        if not self._quiet:
            self._console.print(Text(told, style="dim"))

    def _follow(self, stream: TurnStream) -> Reply | None:
        """The answer; None when it was stopped."""
        try:
            return follow(stream, self._show)
        except KeyboardInterrupt:
            turn = stream.place.turn
            if turn:
                self._client.sessions.cancel(self.session, turn, keep=True)
                # What was durable when it stopped is part of it.
                follow(self._client.sessions.resume(self.session, turn, after=stream.place.after), self._show)
            return None

    def _show(self, text: str) -> None:
        self._console.out(text, end="", highlight=False)
        sys.stdout.flush()

    def _told(self, reply: Reply | None) -> str:
        return "stopped" if reply is None else "; ".join((speed_in_words(reply), *kv_in_words(reply.handoff)))

    def _made(self) -> str:
        sessions = self._client.sessions
        try:
            return sessions.create(self._model).id
        except batonmesh.FailedPrecondition as refused:
            if refused.field != "rerender":
                raise
            self._console.print(Text(f"Every answer will take the whole conversation anew: {refused.message}", "dim"))
            return sessions.create(self._model, rerender=True).id


def _newest(client: Client) -> str:
    for session in client.sessions.newest(limit=1):
        return session.id
    raise NotFound("there is no session to go on with")


def _read(console: Console) -> str | None:
    """The next line, stripped; None at the end of the input."""
    while True:
        try:
            return console.input("[bold cyan]> [/]").strip()
        except EOFError:
            console.print()
            return None
        except KeyboardInterrupt:
            console.print()
