"""`baton simtest` tells which seeds failed, and repeats one."""

import pytest
from typer.testing import CliRunner

from runtime.cli import simtest
from runtime.cli.app import app
from runtime.mesh.simulation import Failure, Report

RUNNER = CliRunner()


def test_good_seeds_are_told_as_such() -> None:
    result = RUNNER.invoke(app, ["simtest", "--seeds", "2", "--from", "5"])
    assert (result.exit_code, result.stdout) == (0, "seeds 5 to 6: no invariant violated\n")


def test_a_bad_seed_is_named_with_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = Failure(8, frozenset({16}), ("invariant 16: a page is lost",))
    monkeypatch.setattr(simtest, "explore", lambda seeds, _, processes: Report(len(seeds), [failure]))
    result = RUNNER.invoke(app, ["simtest", "--seeds", "3", "--from", "7"])
    assert result.exit_code == 1
    assert "seed 8: invariant 16: a page is lost" in result.stdout
    assert "baton simtest --replay 8" in result.stdout


def test_a_repeated_seed_prints_its_trace() -> None:
    result = RUNNER.invoke(app, ["simtest", "--replay", "5"])
    assert result.exit_code == 0
    assert "Placed" in result.stdout
    assert result.stdout.endswith("seed 5: no invariant violated\n")
