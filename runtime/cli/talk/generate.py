"""`baton generate`: one prompt, one answer as it comes, and what happened for it."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from runtime.cli.talk.asking import Reply, ask
from runtime.cli.talk.connecting import DEFAULT_TARGET, Model, Target, connected
from runtime.cli.talk.wording import kv_in_words, speed_in_words

if TYPE_CHECKING:
    from batonmesh import Options, Prompt


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to say; - reads it from stdin.")],
    target: Target = DEFAULT_TARGET,
    model: Model = None,
    max_tokens: Annotated[int, typer.Option(help="Length of the answer, at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token always.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    chat: Annotated[bool, typer.Option("--chat/--raw", help="As a user's message, or as text to continue.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Answer one prompt. The answer goes to stdout, what happened for it to stderr."""
    said = sys.stdin.read() if prompt == "-" else prompt
    asked: Prompt = [{"role": "user", "content": said}] if chat else said
    options: Options = {"max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        options["seed"] = seed
    with connected(target, model) as (client, name):
        reply = ask(client, name, asked, _discard if as_json else _write, **options)
    if as_json:
        typer.echo(json.dumps({"model": name, **_facts(reply)}))
        return
    _write("\n")
    told = f"{speed_in_words(reply)}\n{'; '.join(kv_in_words(reply.handoff))}"
    Console(stderr=True, soft_wrap=True).print(Text(told, style="dim"))


def _write(text: str) -> None:
    typer.echo(text, nl=False)
    sys.stdout.flush()


def _discard(_text: str) -> None:
    pass


def _facts(reply: Reply) -> dict[str, object]:
    return {
        "text": reply.text,
        "tokens": reply.tokens,
        "finish": reply.finish,
        "ttft_ms": round(reply.first_s * 1000, 3),
        "itl_ms": None if reply.step_s is None else round(reply.step_s * 1000, 3),
        "tokens_per_s": round(reply.tokens_per_s, 2),
        "attempts": reply.attempts,
        "handoff": asdict(reply.handoff),
    }
