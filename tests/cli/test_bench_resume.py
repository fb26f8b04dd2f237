"""The bench of resumptions: that each really comes from its tier, and what its ratios are of."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.bench import resume, shape
from runtime.cli.bench.probe import Timing
from runtime.cli.bench.report import Machine
from runtime.cli.bench.resume import _Arm, _report
from runtime.cli.bench.shape import VOCAB
from runtime.domain.messages import Handoff
from runtime.model.synthetic import Shape, make_llama

MACHINE = Machine("Some CPU", 2, 23.4, 0.5, "Linux", "3.11")


def timing(first_s: float) -> Timing:
    return Timing(first_s, 0.1, 0.0, Handoff(0))


def test_ratios_are_to_the_path_alone_less_two_steps_and_to_computing() -> None:
    arms = [_Arm("warm", [timing(0.5), timing(0.7), timing(9.0)], 1000.0), _Arm("cold", [timing(1.2)], 500.0)]
    report = _report(MACHINE, 8192, 400, [timing(14.0)], arms)
    assert report.ratios == {
        "warm_over_floor_8192": 1.25,
        "warm_speedup_8192": 20.0,
        "cold_over_floor_8192": 1.25,
        "cold_speedup_8192": 11.67,
    }
    assert [report.wanted[name].holds(1.5) for name in report.ratios if "floor" in name] == [True, True]


@pytest.mark.slow
def test_a_history_is_resumed_from_memory_and_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llama(tmp_path / "tiny", Shape(vocab=VOCAB))
    monkeypatch.setattr(shape, "llama_146m", lambda: tmp_path / "tiny")
    monkeypatch.setattr(resume, "_QUICK_HISTORY", 128)
    monkeypatch.setattr(resume, "_QUICK_TIMES", 1)
    result = CliRunner().invoke(app, ["bench", "resume", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [(row["resumed"], row["tokens"], row["times"]) for row in report["rows"]] == [
        ("warm", 128, 2),
        ("cold", 128, 2),
    ]
    assert report["ratios"].keys() == {
        "warm_over_floor_128", "warm_speedup_128", "cold_over_floor_128", "cold_speedup_128",
    }  # fmt: skip
