"""`baton model`: what a checkpoint is to a mesh, and how well it remembers."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runtime.cli.agreement import compared
from runtime.cli.face import FAILED
from runtime.config import SHIPPED
from runtime.domain.spec import DTYPE_BYTES
from runtime.errors import ModelError
from runtime.model.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from runtime.model.fingerprint import kv_fingerprint, serving_fingerprint
from runtime.model.recall.shipped import SHIPPED_MODEL

app = typer.Typer(no_args_is_help=True)

_Model = Annotated[str, typer.Argument(metavar="PATH|shipped", help="A Hugging Face directory, or the shipped model.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def show(model: _Model = SHIPPED, as_json: _Json = False) -> None:
    """Show a checkpoint as the mesh sees it: shapes, KV bytes per token, fingerprints. Loads no weights."""
    facts = _facts(open_checkpoint(_place(model)))
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(Text(name.replace("_", " "), style="dim"), _shown(value))
    Console().print(table)


@app.command(name="eval")
def evaluation(
    model: _Model = SHIPPED,
    history: Annotated[int, typer.Option(min=32, metavar="TOKENS", help="Length of the conversations.")] = 512,
    questions: Annotated[int, typer.Option(min=1, help="How many held-out questions to ask.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Which conversations to draw.")] = 1,
    at_least: Annotated[float, typer.Option(min=0, max=1, help="Exit with 1 below this share.")] = 0.0,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WAY",
            help="Also count how many answers stay the same when the prompt's pages come from another worker like "
            "that: fp8, fp8_448, int8, bfloat16, bfloat16+fp8. May be repeated.",
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Ask a model for facts of held-out conversations, and count the answers that are right to the last token."""
    from runtime.model.recall.evaluation import evaluate

    with Console(stderr=True).status(f"asking {questions} questions"):
        report = evaluate(_place(model), history_tokens=history, questions=questions, seed=seed)
        agreements = compared(_place(model), over or [], history, questions, seed)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "model": model,
                    "history_tokens": report.history_tokens,
                    "questions": report.questions,
                    "exact": report.exact,
                    "by_distance": report.by_distance,
                    "over": {each.way: {"same": each.same, "bytes": each.bytes} for each in agreements},
                }
            )
        )
    else:
        table = Table("fact stated, tokens ago", "exactly right", title=f"{model}: {report.questions} questions")
        for distance, share in report.by_distance.items():
            table.add_row(distance, f"{share:.1%}")
        table.add_section()
        table.add_row(f"all of {report.history_tokens}", Text(f"{report.exact:.1%}", style="bold"))
        Console().print(table)
        for each in agreements:
            Console().print(f"over {each}")
    if report.exact < at_least:
        raise typer.Exit(FAILED)


def _place(model: str) -> Path:
    return SHIPPED_MODEL if model == SHIPPED else Path(model)


def _facts(checkpoint: Checkpoint) -> dict[str, object]:
    tensors = checkpoint.tensors.values()
    layers, hidden, heads = (
        _size(checkpoint, name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    kv_heads = _size(checkpoint, "num_key_value_heads", default=heads)
    head_dim = _size(checkpoint, "head_dim", default=hidden // heads)
    fingerprint = kv_fingerprint(checkpoint)
    return {
        "path": str(checkpoint.path),
        "architecture": checkpoint.architecture,
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
        "stored_as": ", ".join(sorted({tensor.dtype for tensor in tensors})),
        "stored_bytes": sum(tensor.size for tensor in tensors),
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab": _size(checkpoint, "vocab_size"),
        "max_tokens": _size(checkpoint, "max_position_embeddings"),
        "kv_bytes_per_token": {name: layers * 2 * kv_heads * head_dim * size for name, size in DTYPE_BYTES.items()},
        "kv_fingerprint": fingerprint,
        "serving_fingerprint": serving_fingerprint(checkpoint, fingerprint),
    }


def _size(checkpoint: Checkpoint, name: str, default: int = 0) -> int:
    """A positive number of config.json; raises `ModelError` naming it when it is not one."""
    value = checkpoint.config.get(name) or default
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{checkpoint.path / CONFIG_FILE}: {name} must be a positive number, got {value!r}")
    return value


def _shown(value: object) -> str:
    match value:
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{_shown(part)} as {name}" for name, part in value.items())
        case _:
            return str(value)
