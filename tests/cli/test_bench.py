"""What the benches report, how, and that they measure what they say."""

import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.bench import gateway, handoff, overlap, simtest
from runtime.cli.bench.probe import Timing
from runtime.cli.bench.report import Bound, Machine, Report, commit
from runtime.cli.bench.shape import VOCAB
from runtime.cli.face import Addresses, Surroundings
from runtime.config import Config
from runtime.domain.messages import Handoff
from runtime.mesh.listening import free_ports
from runtime.model.synthetic import Shape, make_llama
from tests.cli.conftest import Served

RUNNER = CliRunner()
MACHINE = Machine("Some CPU", 2, 23.4, 0.5, "Linux", "3.11")
SHORT = gateway._Pace(warmup_s=0.1, seconds=1.0, rounds=1)


def test_a_report_is_one_object_with_the_machine_and_the_commit() -> None:
    report = Report("handoff", MACHINE, ({"tokens": 32},), {"split_over_local_2048": 1.01})
    assert json.loads(report.json()) == {
        "bench": "handoff",
        "machine": {
            "cpu": "Some CPU",
            "cores": 2,
            "memory_gib": 23.4,
            "load": 0.5,
            "system": "Linux",
            "python": "3.11",
        },
        "commit": commit(),
        "rows": [{"tokens": 32}],
        "ratios": {"split_over_local_2048": 1.01},
    }


def test_the_commit_is_that_of_the_source() -> None:
    head = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert head.stdout.startswith(commit().removesuffix("+"))
    assert commit()


def test_the_machine_is_this_one() -> None:
    here = Machine.here()
    assert here.cores == len(os.sched_getaffinity(0))
    assert here.memory_gib > 0
    assert here.cpu


@pytest.mark.parametrize(
    ("bound", "measured", "holds"),
    [
        (Bound(1.03), 1.03, True),
        (Bound(1.03), 1.04, False),
        (Bound(164, at_least=True), 164.0, True),
        (Bound(164, at_least=True), 163.9, False),
    ],
)
def test_a_bound_says_whether_a_figure_keeps_it(bound: Bound, measured: float, holds: bool) -> None:
    assert bound.holds(measured) is holds


def test_a_table_shows_rows_figures_and_what_was_wanted() -> None:
    console = Console(record=True, width=120, file=io.StringIO())
    rows = ({"tokens": 2048, "local_ttft_ms": 1234.5}, {"tokens": 32, "local_ttft_ms": 0.25})
    Report("handoff", MACHINE, rows, {"split_over_local_2048": 1.2}, {"split_over_local_2048": Bound(1.03)}).show(
        console
    )
    text = console.export_text()
    assert "Some CPU, 2 cores, 23.4 GiB, Linux, Python 3.11; load average before: 0.5" in text
    assert "local ttft ms" in text
    assert "2,048" in text
    assert "1,234" in text
    assert re.search(r"split_over_local_2048 +1\.2 +<= 1\.03", text)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "_QUICK", SHORT)


@pytest.mark.usefixtures("short")
def test_any_openai_compatible_server_can_be_loaded(served: Served) -> None:
    result = RUNNER.invoke(app, ["bench", "gateway", "--quick", "--json", "--target", served.mesh.http])
    report = json.loads(result.stdout)
    assert report["bench"] == "gateway"
    assert [row["over"] for row in report["rows"]] == ["http"] * 3
    assert report["ratios"].keys() == {"http_requests_per_s_32", "http_requests_per_s_128"}
    assert any(rate > 0 for rate in report["ratios"].values())


def test_a_target_that_is_not_there_is_told() -> None:
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    result = RUNNER.invoke(app, ["bench", "gateway", "--quick", "--target", nowhere])
    assert result.exit_code == 1
    assert f"{nowhere}/v1/models does not name a model" in result.stderr


@pytest.mark.usefixtures("short")
def test_whoever_hosts_the_command_lends_it_a_mesh(served: Served) -> None:
    started: list[Config] = []

    @contextmanager
    def start(config: Config) -> Iterator[Addresses]:
        started.append(config)
        yield Addresses(served.mesh.grpc, served.mesh.http)

    result = RUNNER.invoke(app, ["bench", "gateway", "--quick", "--json"], obj=Surroundings(start))
    assert [config.mesh.name for config in started] == ["bench"]
    assert json.loads(result.stdout)["ratios"].keys() == gateway._WANTED.keys()


def test_without_ray_the_bench_says_what_to_do() -> None:
    result = RUNNER.invoke(app, ["bench", "gateway", "--quick"])
    assert result.exit_code == 1
    assert "use --no-ray" in result.stderr


@pytest.mark.usefixtures("short")
def test_without_ray_every_part_is_a_process_of_its_own() -> None:
    result = RUNNER.invoke(app, ["bench", "gateway", "--quick", "--json", "--no-ray"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ratios"].keys() == gateway._WANTED.keys()
    assert all(row["failures"] == 0 for row in report["rows"])


@pytest.mark.slow
def test_the_handoff_bench_compares_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llama(tmp_path / "tiny", Shape(vocab=VOCAB))
    monkeypatch.setattr(handoff, "llama_146m", lambda: tmp_path / "tiny")
    monkeypatch.setattr(overlap, "QUICK", overlap.Pace((64, overlap.STATED), 1, ("grpc",)))
    result = RUNNER.invoke(app, ["bench", "handoff", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {(row["tokens"], row["neighbour"]) for row in report["rows"]} == {
        (64, "no"),
        (128, "no"),
        (2048, "no"),
        (64, "yes"),
        (128, "yes"),
    }
    assert all(row["moved_kib"] > 0 for row in report["rows"])
    assert 0 < report["ratios"]["split_over_local_2048"] < 10
    by_model = {(row["kv_of"], row["tokens"]): row for row in report["overlap"]}
    assert len(by_model) == 6
    assert by_model["8 B", overlap.STATED]["moved_mib"] == 1023.9, "all tokens but the last"
    assert by_model["146 M", overlap.STATED]["moved_mib"] == 192.0
    assert {row["path"] for row in report["overlap"]} == {"grpc"}
    computing_ms = {"146 M": 0.25, "8 B": 0.1, "8 B, whole pages": 0.1}
    for (name, tokens), row in by_model.items():
        assert row["prefill_ms"] >= computing_ms[name] * (tokens - 1)


def overlapped(
    shape: overlap.Shape, path: str, link_ms: float, exposed_ms: float, tokens: int = 8192
) -> overlap.Overlap:
    return overlap.Overlap(shape, path, tokens, tokens << 17, link_ms, shape.token_ms * tokens, exposed_ms)


def test_what_is_exposed_counts_where_the_path_could_hide_it_and_else_is_told() -> None:
    found = [
        overlapped(overlap.LARGE, "shm", 400.0, 8.192),
        overlapped(overlap.LARGE, "grpc", 1638.4, 819.2),
        overlapped(overlap.LARGE, "shm", 30.0, 40.96, tokens=512),
        overlapped(overlap.LARGE_WHOLE, "shm", 400.0, 49.152),
        overlapped(overlap.SMALL, "shm", 90.0, 2.048),
    ]
    assert overlap.figures(found) == {"exposed_share_8192": 0.01, "exposed_share_8192_whole_pages": 0.06}
    (_, told) = overlap.remarks(found)
    assert told == (
        "Cannot be hidden: KV of 8 B by grpc at 8,192 tokens: it is computed at 1.31 GB/s, and the path takes 0.66."
    )
    assert overlap.figures(found[1:2]) == {}


def timing(first_s: float, waited_s: float = 0.0) -> Timing:
    return Timing(first_s, 0.1, waited_s, Handoff(0))


def test_the_crossover_is_where_moving_begins_to_gain_for_good() -> None:
    def cell(tokens: int, local: float, split: float) -> handoff._Cell:
        return handoff._Cell(tokens, True, [handoff._Pair(timing(1.0, local), timing(1.5, split))])

    gains = cell(128, 0.6, 0.0)
    loses = cell(64, 0.4, 0.0)
    assert handoff._crossover([cell(32, 0.6, 0.0), loses, gains, cell(256, 2.0, 0.0)]) == 128
    assert handoff._crossover([gains, cell(256, 0.0, 0.0)]) is None


def test_one_decode_step_is_taken_off_the_split_path() -> None:
    assert handoff._Pair(timing(2.0), timing(2.1)).ratio == pytest.approx(1.0)


def test_the_bench_of_the_simulation_plays_schedules_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simtest, "_QUICK", 16)
    done = RUNNER.invoke(app, ["bench", "simtest", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    (row,) = told["rows"]
    assert (row["schedules"], row["violations"]) == (16, 0)
    assert told["ratios"]["schedules_per_min"] > 0
