"""The router's bench: its traces, its cluster, and that placing by cost is worth what it is said to be."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.bench.routing.deciding import decide
from runtime.cli.bench.routing.replay import ORACLE, Replay, stretched
from runtime.cli.bench.routing.trace import BLOCK, Ask, made_trace, read_trace
from runtime.errors import InvalidArgument
from tests.scale import scaled

LINE = {"timestamp": 2500, "input_length": 700, "output_length": 9, "hash_ids": [3, 4]}


def written(folder: Path, *lines: str) -> Path:
    file = folder / "trace.jsonl"
    file.write_text("\n".join(lines))
    return file


def test_a_trace_is_read_as_it_was_published(tmp_path: Path) -> None:
    file = written(tmp_path, json.dumps(LINE), json.dumps(LINE | {"timestamp": 0, "hash_ids": [1]}), "never read")
    assert read_trace(file, 2) == [Ask(0.0, 700, 9, (1,)), Ask(2.5, 700, 9, (3, 4))]


def test_a_trace_that_is_none_is_refused_by_the_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="line 2 is no request"):
        read_trace(written(tmp_path, json.dumps(LINE), '{"timestamp": 1}'), None)
    with pytest.raises(InvalidArgument, match="no request"):
        read_trace(written(tmp_path), None)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_trace(tmp_path / "absent", None)


def test_a_made_trace_is_the_same_every_time_and_its_prompts_go_on_from_each_other() -> None:
    asks = made_trace(300)
    assert asks == made_trace(300)
    assert all(BLOCK * (len(ask.blocks) - 1) < ask.tokens <= BLOCK * len(ask.blocks) for ask in asks)
    assert [ask.at for ask in asks] == sorted(ask.at for ask in asks)
    prompts = {ask.blocks for ask in asks}
    assert sum(any(ask.blocks[:length] in prompts for length in range(1, len(ask.blocks))) for ask in asks) > 100


def test_by_cost_the_first_token_comes_sooner_and_hardly_a_hit_is_missed() -> None:
    asks = stretched(made_trace(scaled(500, 3000)), 0.85)
    cost, least, oracle = (Replay(name).run(asks) for name in ("cost", "least_loaded", ORACLE))
    assert cost.hit >= 0.95 * oracle.hit > least.hit
    assert cost.mean_ttft_ms <= 0.7 * least.mean_ttft_ms


def test_decisions_are_timed_among_the_workers_that_were_asked_for() -> None:
    decided = decide(20, 200_000, 30)
    assert len(decided.decide_ms) == 30
    assert decided.bytes_per_page <= 40


def test_a_trace_that_cannot_be_read_ends_the_bench_with_its_name(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["bench", "router", "--trace", str(tmp_path / "absent.jsonl")])
    assert ended.exit_code == 1
    assert "absent.jsonl cannot be read" in " ".join(ended.output.split())
