"""The engine bench: what its ratios are of, and that each engine is really run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.bench import engine
from runtime.cli.bench.shape import VOCAB
from runtime.engine.timing.plan import EnginePlan, EngineTimes
from runtime.model.synthetic import Shape, make_llama

RUNNER = CliRunner()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_llama(tmp_path / "tiny", Shape(vocab=VOCAB))
    monkeypatch.setattr(engine, "llama_146m", lambda: tmp_path / "tiny")
    return tmp_path / "tiny"


def test_ratios_are_of_medians_and_of_the_better_of_the_others() -> None:
    times = {
        "native": EngineTimes({"1024": [80.0, 70.0, 500.0]}, [20.0], [400.0], [30.0, 10.0, 20.0], [30.0]),
        "transformers": EngineTimes({"1024": [200.0]}, [40.0], [200.0]),
        "vllm": EngineTimes({"1024": [100.0]}, [10.0], [100.0]),
    }
    assert engine._ratios(times, floor_ms=16.0) == {
        "decode16_vs_transformers": 2.0,
        "decode16_vs_vllm": 4.0,
        "itl_vs_transformers": 0.5,
        "itl_over_floor": 1.25,
        "ttft1024_vs_best": 0.8,
        "mixed_itl_p99": 1.5,
    }


def test_prompts_are_the_same_for_every_engine_and_share_no_beginning() -> None:
    plan = EnginePlan("m", "float32", 1, VOCAB, (8,), 8, 2, 2, 1)
    assert plan.prompt(8, 1) == plan.prompt(8, 1)
    assert plan.prompt(8, 1)[0] != plan.prompt(8, 2)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_it_times_the_native_engine_beside_transformers() -> None:
    result = RUNNER.invoke(app, ["bench", "engine", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["engine"] for row in report["rows"]] == ["native", "transformers"]
    assert all(row["ttft_ms_1024"] > row["itl_ms"] > 0 for row in report["rows"])
    assert report["ratios"].keys() == {
        "decode16_vs_transformers",
        "itl_vs_transformers",
        "itl_over_floor",
        "ttft1024_vs_best",
        "mixed_itl_p99",
    }


@pytest.mark.usefixtures("tiny")
def test_a_python_without_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_MODULES", {})
    result = RUNNER.invoke(app, ["bench", "engine", "--quick", "--vllm", "/nowhere/python"])
    assert result.exit_code == 1
    assert "/nowhere/python cannot be run: No such file or directory" in result.stderr
