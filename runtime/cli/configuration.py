"""`baton config`: is a file good, what does it amount to, what may it say."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.text import Text

from runtime.config import Config, load_config

app = typer.Typer(no_args_is_help=True)

_File = Annotated[Path, typer.Argument(metavar="FILE", help="A configuration file, such as configs/local.yaml.")]


@app.command()
def check(file: _File) -> None:
    """Say whether a file is good, and name every field that is not."""
    config = load_config(file)
    if config.model.simulated is None:
        from runtime.mesh.models import check_model

        check_model(config)
    Console().print(Text.assemble((f"{file} is good", "green"), f": {_in_words(config)}"), soft_wrap=True)


@app.command()
def show(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Without one: the defaults.")] = None,
) -> None:
    """Print the whole tree that a file amounts to, defaults filled in, as YAML."""
    tree = load_config(file).model_dump(mode="json")
    _print(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), "yaml")


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration, for editors that check YAML while you type."""
    _print(json.dumps(Config.model_json_schema(), indent=2) + "\n", "json")


def _in_words(config: Config) -> str:
    roles: Counter[str] = Counter()
    for worker in config.workers:
        roles[worker.role] += worker.count
    model = "a simulated model" if config.model.simulated is not None else f"model {config.model.path}"
    workers = ", ".join(f"{count} {role}" for role, count in sorted(roles.items(), reverse=True))
    return f"mesh {config.mesh.name}, {model}, workers: {workers}; gateway replicas: {config.gateway.replicas}"


def _print(text: str, language: str) -> None:
    """In colour on a terminal, untouched into a pipe."""
    console = Console()
    if console.is_terminal:
        console.print(Syntax(text, language, background_color="default", word_wrap=True))
    else:
        typer.echo(text, nl=False)
