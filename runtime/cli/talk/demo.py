"""`baton demo`: a conversation with the shipped model, and for every answer what happened inside the mesh.

The mesh gets the conversation as it came, wrong answers included; a wrong one is called wrong.
"""

from dataclasses import dataclass

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from batonmesh import Client, Credentials
from runtime.cli.face import FAILED
from runtime.cli.talk.asking import Reply, ask
from runtime.cli.talk.connecting import DEFAULT_TARGET, Target, connected
from runtime.cli.talk.script import EARLIER, LIVE, Line
from runtime.cli.talk.wording import kv_in_words, speed_in_words
from runtime.model.checkpoint import open_checkpoint
from runtime.model.fingerprint import kv_fingerprint
from runtime.model.recall.shipped import SHIPPED_MODEL

_ANSWER_TOKENS = 48
_DEADLINE_S = 120.0
_SHOWN_EARLIER = 6
_MARGIN = " " * 7

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Played:
    """`right` is None when nobody knows what a right answer would be."""

    line: Line
    reply: Reply
    right: bool | None


@dataclass(frozen=True, slots=True)
class DemoReport:
    model: str
    played: tuple[Played, ...]

    @property
    def wrong(self) -> int:
        return sum(one.right is False for one in self.played)

    @property
    def moved_tokens(self) -> int:
        """Tokens whose KV a prefill worker handed over."""
        return sum(one.reply.handoff.moved_tokens for one in self.played)

    @property
    def exposed(self) -> tuple[float, float]:
        """Milliseconds of transfers that went on after the prefills, and those of these prefills."""
        moved = [one.reply.handoff for one in self.played if one.reply.handoff.moved_tokens]
        return sum(each.exposed_ms for each in moved), sum(each.prefill_ms for each in moved)


def demo(target: Target = DEFAULT_TARGET) -> None:
    """Hold a short conversation with the shipped model, and tell what happened for every answer.

    Exits with 1 when none of the answers that can be judged was right.
    """
    report = run_demo(target, Console(highlight=False))
    judged = [one for one in report.played if one.right is not None]
    if judged and report.wrong == len(judged):
        raise typer.Exit(FAILED)


def run_demo(target: str, console: Console, credentials: Credentials | None = None) -> DemoReport:
    """Raises `Unavailable`, or a `batonmesh.BatonError` when an answer failed."""
    with connected(target, credentials=credentials) as (client, model):
        judging = _is_shipped(client, model)
        messages = _earlier()
        tokens = client.count_tokens(model, messages, timeout=_DEADLINE_S)
        _introduce(console, model, tokens, judging=judging)
        played = tuple(_play(client, model, messages, line, console, judging=judging) for line in LIVE)
    report = DemoReport(model, played)
    _sum_up(console, report)
    return report


def _play(client: Client, model: str, messages: Messages, line: Line, console: Console, *, judging: bool) -> Played:
    """One turn; `messages` grows by what was said."""
    messages.append({"role": "user", "content": line.user})
    console.print(Text.assemble(("You    ", "bold cyan"), line.user))
    console.print(Text("Baton  ", style="bold green"), end="")
    reply = ask(
        client,
        model,
        messages,
        lambda text: console.out(text, end="", highlight=False),
        timeout=_DEADLINE_S,
        max_tokens=_ANSWER_TOKENS,
        temperature=0.0,
    )
    right = reply.text.strip() == line.answer if judging else None
    console.print(Text("  right", style="green") if right else "")
    if right is False:
        console.print(Text(f"{_MARGIN}wrong, it should be: {line.answer}", style="red"))
    for told in (*kv_in_words(reply.handoff), speed_in_words(reply)):
        console.print(Text(f"{_MARGIN}{told}", style="dim"))
    console.print()
    messages.append({"role": "assistant", "content": reply.text})
    return Played(line, reply, right)


def _is_shipped(client: Client, model: str) -> bool:
    """Whether the mesh serves the very model that this script is for, whatever it calls it."""
    shipped = kv_fingerprint(open_checkpoint(SHIPPED_MODEL))
    return any(each.name == model and each.kv_fingerprint == shipped for each in client.list_models())


def _earlier() -> Messages:
    return [
        message
        for line in EARLIER
        for message in ({"role": "user", "content": line.user}, {"role": "assistant", "content": line.answer})
    ]


def _introduce(console: Console, model: str, tokens: int, *, judging: bool) -> None:
    console.print(Text.assemble("A conversation with ", (model, "bold green"), f". Said before, {tokens:,} tokens:"))
    said = Table.grid(padding=(0, 3))
    for line in EARLIER[:_SHOWN_EARLIER]:
        said.add_row(Text(f"  {line.user}", style="dim"), Text(line.answer, style="dim"))
    said.add_row(Text(f"  ... and {len(EARLIER) - _SHOWN_EARLIER} exchanges more", style="dim"))
    console.print(said)
    if not judging:
        console.print(Text("This is not the shipped model, so nobody knows what a right answer is.", style="yellow"))
    console.print()


def _sum_up(console: Console, report: DemoReport) -> None:
    right = sum(one.right is True for one in report.played)
    told = f"{report.moved_tokens:,} tokens of KV were handed over"
    if report.wrong or right:
        told = f"{right} of {right + report.wrong} answers were right; {told}."
        console.print(Text(told, style="red" if report.wrong else "green"))
    else:
        console.print(Text(f"{told}."))
    exposed_ms, prefill_ms = report.exposed
    if prefill_ms:
        shown = f"Of the transfers {exposed_ms:.1f} ms were not hidden by prefills that took {prefill_ms:,.0f} ms"
        console.print(Text(f"{shown}: {exposed_ms / prefill_ms:.1%}.", style="dim"))
