"""`baton chat`: a conversation line by line. It is kept here and sent whole with every turn."""

import readline  # noqa: F401 - gives input() its editing and its history
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import batonmesh
from batonmesh import Client, Options
from runtime.cli.face import complain
from runtime.cli.talk.asking import ask
from runtime.cli.talk.connecting import DEFAULT_TARGET, Model, Target, connected
from runtime.cli.talk.wording import kv_in_words, speed_in_words

_FRESH = "/new"


def chat(
    target: Target = DEFAULT_TARGET,
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Length of an answer, at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token always.")] = 0.0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not tell what happened for each answer.")] = False,
) -> None:
    """Talk line by line. Ctrl-C stops an answer, Ctrl-D ends, /new starts the conversation over."""
    with connected(target, model) as (client, name):
        console = Console(soft_wrap=True, highlight=False)
        console.print(Text(f"{name} at {target}. Ctrl-C stops an answer, Ctrl-D ends, {_FRESH} starts over.", "dim"))
        options: Options = {"max_tokens": max_tokens, "temperature": temperature}
        conversation = Conversation(client, name, system, options, console, quiet=quiet)
        while (line := _read(console)) is not None:
            if line == _FRESH:
                conversation.start_over()
                console.print(Text("A new conversation.", "dim"))
            elif line:
                conversation.say(line)


class Conversation:
    """What was said so far. A question that failed is forgotten; an answer that was stopped stays as far as it came."""

    def __init__(
        self, client: Client, model: str, system: str | None, options: Options, console: Console, *, quiet: bool
    ) -> None:
        self._client = client
        self._model = model
        self._opening = [{"role": "system", "content": system}] if system else []
        self._options = options
        self._console = console
        self._quiet = quiet
        self.start_over()

    def start_over(self) -> None:
        self.messages = [*self._opening]

    def say(self, line: str) -> None:
        asked = [*self.messages, {"role": "user", "content": line}]
        came: list[str] = []

        def show(text: str) -> None:
            came.append(text)
            self._console.out(text, end="", highlight=False)
            sys.stdout.flush()

        told = "stopped"
        try:
            reply = ask(self._client, self._model, asked, show, **self._options)
            told = "; ".join((speed_in_words(reply), *kv_in_words(reply.handoff)))
        except KeyboardInterrupt:
            pass
        except batonmesh.BatonError as error:
            self._console.print()
            complain(error.message)
            return
        self.messages = [*asked, {"role": "assistant", "content": "".join(came)}]
        self._console.print()
        if not self._quiet:
            self._console.print(Text(told, style="dim"))


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
