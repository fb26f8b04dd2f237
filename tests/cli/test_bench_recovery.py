"""The bench of recoveries: what its figures are of, and that it ends whichever worker runs the answer."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.bench import recovery, shape
from runtime.cli.bench.recovery import _Found, _Recovery, _report
from runtime.cli.bench.report import Machine
from runtime.domain.messages import Handoff
from runtime.model.synthetic import Shape, make_llama

MACHINE = Machine("Some CPU", 2, 23.4, 0.5, "Linux", "3.11")


def recovered(name: str, pause_s: float, own_s: float) -> _Recovery:
    return _Recovery(name, pause_s, 0.1, Handoff(8192, restored_tokens=8192, wait_ms=own_s * 1000))


def test_ratios_are_to_the_path_alone_and_to_computing_after_the_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_token_bytes", lambda: 1000)
    found = _Found(recovered("kill", 0.7, 0.3), recovered("stop", 2.9, 0.3), computed_s=12.0)
    report = _report(MACHINE, 8192, 8192 * 1000 / 0.25, found)
    assert report.ratios == {
        "restore_over_floor_8192": 1.2,
        "restore_speedup_8192": 30.0,
        "detect_s_kill": 0.3,
        "detect_s_stop": 2.5,
    }
    kept = {name: report.wanted[name].holds(report.ratios[name]) for name in report.wanted}
    assert kept == {"restore_over_floor_8192": True, "detect_s_kill": True, "detect_s_stop": False}


@pytest.mark.slow
def test_answers_go_on_from_their_mirror_whichever_worker_ran_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_llama(tmp_path / "tiny", Shape(vocab=shape.VOCAB))
    monkeypatch.setattr(shape, "llama_146m", lambda: tmp_path / "tiny")
    monkeypatch.setattr(recovery, "_QUICK_HISTORY", 256)
    # Its steps are short.
    monkeypatch.setattr(recovery, "_ANSWER_TOKENS", 800)
    result = CliRunner().invoke(app, ["bench", "recovery", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["decode_worker"] for row in report["rows"]] == ["kill", "stop"]
    assert all(row["restored_tokens"] >= 256 for row in report["rows"])
    assert report["ratios"].keys() == {
        "restore_over_floor_256", "restore_speedup_256", "detect_s_kill", "detect_s_stop",
    }  # fmt: skip
    # A killed worker is missed at once, a stopped one only by its silence.
    assert report["ratios"]["detect_s_stop"] > recovery._timing().silence_s / 2
