"""`baton bench session` measures the real store, and says how it stands to what is wanted."""

import json

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.bench import session

RUNNER = CliRunner()


def test_the_bench_of_sessions_tells_what_is_wanted_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_QUICK", session._Pace(seconds=0.1, tokens=4, rounds=20, sessions=200, idle=200))
    monkeypatch.setattr(session, "_LONG", 100)
    monkeypatch.setattr(session, "_MILLION", 200)
    result = RUNNER.invoke(app, ["bench", "session", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert session._WANTED.keys() <= report["ratios"].keys()
    assert all(0 <= value < 10_000 for value in report["ratios"].values())
    assert [row["sessions"] for row in report["rows"]] == list(session._CONCURRENT)
    for row in report["rows"]:
        assert 0 < row["commit_ms_p50"] <= row["commit_ms_p99"]
        # Each turn is 18 commits.
        assert 17 < row["commits_per_s"] / row["turns_per_s"] < 19
