"""`baton route`: where a running gateway would place a prompt now, and what each worker would cost. Places nothing."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import batonmesh
from runtime.cli.talk.connecting import DEFAULT_TARGET, Model, Target, connected
from runtime.domain.routing import Estimate, Explained, Reason, rounded
from runtime.errors import StartError
from runtime.wire.routing import unpack_explained

if TYPE_CHECKING:
    from batonmesh import Prompt

_ANSWER_S = 10.0
_ROWS = 20
_WIDTH = 240
_WHY = {
    Reason.COST: "it costs the least",
    Reason.LEAST_LOADED: "the placement is least_loaded, which weighs no costs",
    Reason.ROUND_ROBIN: "the placement is round_robin, which weighs no costs",
    Reason.UNMEASURED: "the least loaded, since no worker was measured yet and there are no costs to weigh",
    Reason.SHORT: "the least loaded, since so short a prompt has nothing to gain by weighing costs",
}
_COLUMNS = ("", "worker", "prefilled by", "held", "queue", "prefill", "load", "link", "pages", "others", "decode", "ms")
_WORDS = ("", "worker", "prefilled by")
_LEGEND = (
    "Milliseconds: queue until the prefill begins, prefill computed, load fetched from slower memory, link for pages "
    "that no computation hides, pages for room and a place in the batch, others who wait for it, decode of the answer."
)


def route(
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Place this; - reads it from stdin.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="A prompt of so many tokens instead, which nobody holds.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what every decode worker would cost.")] = False,
    target: Target = DEFAULT_TARGET,
    model: Model = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer, at most.")] = 256,
    chat: Annotated[bool, typer.Option("--chat/--raw", help="As a user's message, or as text to continue.")] = True,
    tenant: Annotated[str, typer.Option(help="Whose prompt it is; by default whose it is without a key.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say which decode worker would get a prompt now, and why. Needs the role admin where callers show who they are."""
    asked = _asked(prompt, tokens, chat=chat)
    with connected(target, model) as (client, name):
        try:
            message = client.explain_route(name, asked, max_tokens=max_tokens, tenant=tenant, timeout=_ANSWER_S)
        except batonmesh.NotSupported as error:
            raise StartError(f"the gateway at {target} cannot say: {error.message}") from error
    explained = unpack_explained(message)
    if as_json:
        costs = [rounded(cost) for cost in explained.costs]
        told = {"model": name, "prompt_tokens": message.prompt_tokens, "worker": explained.worker}
        typer.echo(json.dumps({**told, "reason": explained.reason, "costs": costs}))
        return
    _show(message.prompt_tokens, explained, table=explain)


def _asked(prompt: str | None, tokens: int | None, *, chat: bool) -> "Prompt | int":
    if tokens is not None and prompt is None:
        return tokens
    if prompt is None or tokens is not None:
        raise typer.BadParameter("name either a PROMPT or --tokens", param_hint="PROMPT")
    said = sys.stdin.read() if prompt == "-" else prompt
    return [{"role": "user", "content": said}] if chat else said


def _show(tokens: int, explained: Explained, *, table: bool) -> None:
    console = Console()
    if explained.worker is None:
        console.print("nobody serves to whom a prompt could go", style="yellow")
        return
    told = (
        Text(f"{tokens:,} tokens go to ").append(explained.worker, style="bold").append(f": {_WHY[explained.reason]}")
    )
    console.print(told, soft_wrap=True)
    if not table or not explained.costs:
        return
    # Figures that are cut tell nothing: a narrow terminal wraps them.
    Console(width=_WIDTH).print(_table(explained))
    if len(explained.costs) > _ROWS:
        console.print(f"and {len(explained.costs) - _ROWS} more ways that cost as much or more; --json has them")
    console.print(Text(_LEGEND, style="dim"))


def _table(explained: Explained) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    chosen = next((cost for cost in explained.costs if cost.worker == explained.worker), None)
    for cost in explained.costs[:_ROWS]:
        table.add_row(*map(Text, _cells(cost, chosen=cost is chosen)), style="bold" if cost is chosen else "")
    return table


def _cells(cost: Estimate, *, chosen: bool) -> list[str]:
    held = cost.held if cost.prefill is None else max(cost.held, cost.prefill_held)
    load = f"{cost.load_ms:,.1f} {cost.load_tier}" if cost.load_tier else _ms(cost.load_ms)
    parts = [cost.queue_ms, cost.prefill_ms, cost.move_ms, cost.wait_ms, cost.others_ms, cost.decode_ms, cost.total_ms]
    queue, prefill, *rest = map(_ms, parts)
    return ["*" if chosen else "", cost.worker, cost.prefill or "itself", f"{held:,}", queue, prefill, load, *rest]


def _ms(value: float) -> str:
    return f"{value:,.1f}"
