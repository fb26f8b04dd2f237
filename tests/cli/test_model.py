"""`baton model` shows a checkpoint as the mesh sees it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.model.checkpoint import open_checkpoint
from runtime.model.fingerprint import kv_fingerprint
from runtime.model.recall.shipped import SHIPPED_MODEL
from runtime.model.synthetic import Shape, make_llama

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(path, Shape(layers=3, heads=4, kv_heads=2, head_dim=16))
    return path


def test_shapes_and_kv_bytes_are_those_of_the_checkpoint(tiny: Path) -> None:
    shown = json.loads(RUNNER.invoke(app, ["model", "show", str(tiny), "--json"]).stdout)
    assert (shown["layers"], shown["kv_heads"], shown["head_dim"]) == (3, 2, 16)
    assert shown["kv_bytes_per_token"]["float32"] == 3 * 2 * 2 * 16 * 4
    assert shown["stored_bytes"] == 4 * shown["parameters"]
    assert shown["kv_fingerprint"] == kv_fingerprint(open_checkpoint(tiny))


def test_the_shipped_model_is_shown_unless_another_is_named() -> None:
    result = RUNNER.invoke(app, ["model", "show"])
    assert result.exit_code == 0
    assert str(SHIPPED_MODEL.name) in result.stdout
    assert "kv bytes per token" in result.stdout


def test_a_configuration_without_a_size_is_refused_by_its_name(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tiny / "config.json").read_text())
    del config["num_hidden_layers"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = RUNNER.invoke(app, ["model", "show", str(tmp_path)])
    assert result.exit_code == 1
    assert "config.json: num_hidden_layers must be a positive number, got 0" in result.stderr


def test_an_evaluation_below_what_was_asked_exits_with_one(tiny: Path) -> None:
    asked = ["model", "eval", str(tiny), "--questions", "1", "--history", "64", "--json"]
    result = RUNNER.invoke(app, asked)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["questions"] == 1
    assert RUNNER.invoke(app, [*asked, "--at-least", "0.9"]).exit_code == 1


def test_an_evaluation_tells_how_many_answers_stay_the_same_over_smaller_pages(tiny: Path) -> None:
    asked = ["model", "eval", str(tiny), "--questions", "2", "--history", "64", "--json"]
    result = RUNNER.invoke(app, [*asked, "--over", "plain", "--over", "int8", "--over", "bfloat16"])
    assert result.exit_code == 0, result.output
    over = json.loads(result.stdout)["over"]
    assert over["plain"]["same"] == 1.0
    assert 0 <= over["int8"]["same"] <= 1
    assert over["bfloat16"]["bytes"] * 2 == over["plain"]["bytes"]
    assert 0.25 < over["int8"]["bytes"] / over["plain"]["bytes"] < 0.3
    shown = RUNNER.invoke(app, [*asked[:-1], "--over", "fp8"])
    assert "over fp8: " in shown.stdout
    assert "of 2 answers" in shown.stdout


def test_a_way_that_is_not_known_is_refused_by_name(tiny: Path) -> None:
    result = RUNNER.invoke(app, ["model", "eval", str(tiny), "--questions", "1", "--history", "64", "--over", "zip"])
    assert result.exit_code == 2
    assert "'zip' is no way" in result.stderr
