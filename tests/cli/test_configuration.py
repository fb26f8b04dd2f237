"""`baton config` says what a file amounts to, and what is wrong with it."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.config import Config, load_config, parse_config

RUNNER = CliRunner()
LOCAL = Path(__file__).resolve().parents[2] / "configs" / "local.yaml"


def test_a_good_file_is_summed_up() -> None:
    result = RUNNER.invoke(app, ["config", "check", str(LOCAL)])
    assert result.exit_code == 0
    assert result.stdout == (
        f"{LOCAL} is good: mesh local, model shipped, workers: 1 prefill, 2 decode; gateway replicas: 1\n"
    )


def test_every_fault_of_a_bad_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text("engine: {kv_mb: 1, page_tokens: x}")
    result = RUNNER.invoke(app, ["config", "check", str(file)])
    assert result.exit_code == 1
    assert "engine.kv_mb: unknown key; did you mean kv_mib?" in result.stderr
    assert "engine.page_tokens: must be a valid integer" in result.stderr


@pytest.mark.parametrize("text", ["model: {path: nowhere}", "model: {path: .}"])
def test_a_model_directory_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(text)
    result = RUNNER.invoke(app, ["config", "check", str(file)])
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr


def test_ranks_that_cannot_share_the_model_are_told(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text("workers: [{name: d, role: decode, threads: 64, tensor_parallel: 64}]")
    result = RUNNER.invoke(app, ["config", "check", str(file)])
    assert result.exit_code == 1
    assert "engine.tensor_parallel: " in result.stderr
    assert "64 ranks cannot share its" in result.stderr


def test_what_is_shown_is_a_file_that_amounts_to_the_same() -> None:
    result = RUNNER.invoke(app, ["config", "show", str(LOCAL)])
    assert parse_config(yaml.safe_load(result.stdout), "shown") == load_config(LOCAL)


def test_without_a_file_the_defaults_are_shown() -> None:
    result = RUNNER.invoke(app, ["config", "show"])
    assert parse_config(yaml.safe_load(result.stdout), "shown") == Config()


def test_the_schema_knows_every_section() -> None:
    result = RUNNER.invoke(app, ["config", "schema"])
    assert json.loads(result.stdout)["properties"].keys() == Config.model_fields.keys()
