"""`baton route` says where a running gateway would place a prompt, and shows what each worker would cost."""

import json
import time

import pytest
from typer.testing import CliRunner

from batonmesh import Client
from runtime.cli.app import app
from runtime.cli.route import _show
from runtime.domain.routing import Estimate, Explained, Reason
from runtime.ids import WorkerId

RUNNER = CliRunner()
LONG = "A long way to go. " * 20
WAYS = 4  # each of two decode workers, by itself and with the prefill worker


@pytest.fixture
def measured(target: str) -> str:
    """The address of a mesh of which every worker was measured at work."""
    ends = time.monotonic() + 30
    with Client(target) as client:
        while time.monotonic() < ends:
            client.complete("simulated", f"{time.monotonic()} {LONG}", max_tokens=8, temperature=0, timeout=20)
            if len(client.explain_route("simulated", 500, timeout=10).costs) == WAYS:
                return target
    raise AssertionError("it was never measured")


def test_a_table_shows_each_worker_by_each_way_and_the_chosen_one(measured: str) -> None:
    result = RUNNER.invoke(app, ["route", LONG, "--explain", "--target", measured], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    first, head, *rows = result.stdout.splitlines()
    assert first.endswith(": it costs the least")
    assert head.split()[:3] == ["worker", "prefilled", "by"]
    ways = [row.removeprefix("*").split()[:2] for row in rows[:4]]
    assert sorted(ways) == [[f"decode-{n}", by] for n in (0, 1) for by in ("itself", "prefill-0")]
    assert [row for row in rows if row.startswith("*")] == rows[:1]
    assert first.split("go to ")[1].startswith(rows[0].split()[1])
    totals = [float(row.split()[-1]) for row in rows[:4]]
    assert totals == sorted(totals)


def test_without_explain_it_is_one_line(measured: str) -> None:
    result = RUNNER.invoke(app, ["route", "--tokens", "1000", "--target", measured])
    assert result.stdout.startswith("1,000 tokens go to decode-")
    assert len(result.stdout.splitlines()) == 1


def test_json_has_all_parts_and_they_add_up(measured: str) -> None:
    told = json.loads(RUNNER.invoke(app, ["route", "-", "--raw", "--json", "--target", measured], input=LONG).stdout)
    assert (told["model"], told["prompt_tokens"], told["reason"]) == ("simulated", len(LONG), "cost")
    for cost in told["costs"]:
        parts = [value for name, value in cost.items() if name.endswith("_ms") and name != "total_ms"]
        assert sum(parts) == pytest.approx(cost["total_ms"], abs=0.02)
    assert told["costs"][0]["worker"] == told["worker"]


@pytest.mark.parametrize("asked", [[], ["Hello.", "--tokens", "3"]])
def test_a_prompt_or_its_length_is_needed(target: str, asked: list[str]) -> None:
    result = RUNNER.invoke(app, ["route", *asked, "--target", target])
    assert result.exit_code == 2
    assert "--tokens" in result.output


def test_a_prompt_beyond_the_context_is_refused_by_its_field(target: str) -> None:
    result = RUNNER.invoke(app, ["route", "--tokens", "9999", "--target", target])
    assert result.exit_code == 1
    assert "tokens asks for 9999" in result.stderr


@pytest.mark.parametrize(
    ("reason", "words"),
    [(Reason.ROUND_ROBIN, "weighs no costs"), (Reason.UNMEASURED, "there are no costs to weigh")],
)
def test_where_there_are_no_costs_it_says_so(capsys: pytest.CaptureFixture[str], reason: Reason, words: str) -> None:
    _show(10, Explained(WorkerId("decode-1"), reason), table=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("10 tokens go to decode-1: ")
    assert words in line


def test_what_comes_from_slower_memory_names_its_tier(capsys: pytest.CaptureFixture[str]) -> None:
    cost = Estimate(WorkerId("a"), None, 0, 0, 1.0, 2.0, 0.0, 0.0, 0.0, 3.0, 4.5, "host")
    _show(10, Explained(WorkerId("a"), Reason.COST, (cost,)), table=True)
    out = capsys.readouterr().out
    assert "4.5 host" in out
    assert "10.5" in out
