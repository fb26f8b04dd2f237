"""How the command line answers: help worth reading, one red line for a failure, and the right exit status."""

import pytest
import typer
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.face import LOOK, RUN, TALK, Face
from runtime.errors import ConfigError, InvariantViolation, Unavailable

RUNNER = CliRunner()


@pytest.fixture
def small() -> typer.Typer:
    """A command line with a command for every way to end."""
    small = typer.Typer(cls=Face, pretty_exceptions_enable=False)

    @small.command(rich_help_panel=LOOK)
    def look() -> None:
        """Fail with two faults."""
        raise ConfigError("mesh.yaml: a: is [bold]wrong\nb: is wrong too")

    @small.command(rich_help_panel=TALK)
    def talk() -> None:
        """Fail as a client."""
        raise Unavailable("nobody is there")

    @small.command(rich_help_panel=RUN)
    def run() -> None:
        """Be interrupted."""
        raise KeyboardInterrupt

    @small.command()
    def crash() -> None:
        """Have a bug."""
        raise InvariantViolation(16, "a page is lost")

    return small


def test_a_fault_of_the_setup_is_told_on_stderr_line_by_line(small: typer.Typer) -> None:
    result = RUNNER.invoke(small, ["look"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "mesh.yaml: a: is [bold]wrong\nb: is wrong too\n"


def test_a_refused_request_is_told_without_a_traceback(small: typer.Typer) -> None:
    result = RUNNER.invoke(small, ["talk"])
    assert (result.exit_code, result.stderr) == (1, "nobody is there\n")


def test_an_interrupt_ends_quietly(small: typer.Typer) -> None:
    result = RUNNER.invoke(small, ["run"])
    assert (result.exit_code, result.output) == (130, "")


def test_a_bug_of_ours_keeps_its_traceback(small: typer.Typer) -> None:
    result = RUNNER.invoke(small, ["crash"])
    assert isinstance(result.exception, InvariantViolation)


def test_wrong_usage_exits_with_two(small: typer.Typer) -> None:
    assert RUNNER.invoke(small, ["nothing"]).exit_code == 2


def test_panels_come_in_the_order_of_a_newcomer_whoever_was_added_first(small: typer.Typer) -> None:
    shown = RUNNER.invoke(small, ["--help"]).stdout
    assert shown.index(RUN) < shown.index(TALK) < shown.index(LOOK)


def test_without_a_command_the_help_is_shown() -> None:
    result = RUNNER.invoke(app, [])
    assert "baton up --demo" in result.output


@pytest.mark.parametrize("command", [["config"], ["config", "check"], ["model", "eval"], ["simtest"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    result = RUNNER.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_the_version_is_that_of_the_distribution() -> None:
    result = RUNNER.invoke(app, ["--version"])
    assert result.stdout.startswith("baton ")
