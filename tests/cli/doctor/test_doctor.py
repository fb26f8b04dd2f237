"""`baton doctor` judges a configuration by the machine it is on, and its exit status says what came of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from runtime.cli.app import app
from runtime.cli.doctor.node import Finding, Level, Node
from runtime.cli.doctor.verdict import check_configuration, runs_here
from runtime.config import Config, load_config, parse_config
from tests.cli.doctor.machines import NEURON, PACKAGES, machine

RUNNER = CliRunner()
CONFIGS = Path(__file__).resolve().parents[3] / "configs"
TRAINIUM = load_config(CONFIGS / "trainium.yaml")


def judged(config: Config, node: Node) -> tuple[bool, dict[str, Finding]]:
    findings = check_configuration(config, node)
    return runs_here(config, findings), {finding.name: finding for finding in findings}


def changed(**sections: Any) -> Config:  # noqa: ANN401 - sections of a configuration, as YAML has them
    return parse_config(yaml.safe_load((CONFIGS / "trainium.yaml").read_text()) | sections, "test")


def test_a_machine_with_a_neuron_device_runs_both_pools(tmp_path: Path) -> None:
    runs, found = judged(TRAINIUM, machine(tmp_path, NEURON))
    assert runs
    assert found["prefill pool prefill"].found == "1 x neuron x1"
    assert found["decode pool decode"].found == "2 x cpu x1"


def test_without_a_device_the_pool_at_fault_is_named(tmp_path: Path) -> None:
    runs, found = judged(TRAINIUM, machine(tmp_path))
    assert not runs
    assert found["prefill pool prefill"].level is Level.FAULT
    assert "there is no /dev/neuron0" in found["prefill pool prefill"].found
    assert found["decode pool decode"].level is Level.GOOD


def test_a_cluster_of_others_needs_one_pool_here(tmp_path: Path) -> None:
    attached = changed(ray={"address": "auto"})
    assert judged(attached, machine(tmp_path / "a"))[0]
    assert not judged(attached, machine(tmp_path / "b", packages={}))[0]


def test_the_stand_in_runs_anywhere(tmp_path: Path) -> None:
    workers = [{"name": "d", "role": "decode", "device": "neuron", "neuron": {"stand_in": True}}]
    runs, found = judged(changed(workers=workers), machine(tmp_path))
    assert runs
    assert found["decode pool d"].found == "1 x cpu x1 for neuron"


@pytest.mark.parametrize(
    ("sections", "name", "message"),
    [
        ({"model": {"path": "/nowhere"}}, "model", "/nowhere"),
        ({"engine": {"kv_mib": 8192}}, "KV memory", "16384 MiB for 2 workers, 8192 MiB are available"),
    ],
)
def test_what_keeps_every_pool_from_running_is_named(
    sections: dict[str, Any], name: str, message: str, tmp_path: Path
) -> None:
    runs, found = judged(changed(**sections), machine(tmp_path, NEURON))
    assert not runs
    assert message in found[name].found


def test_pools_that_share_the_memory_are_told_with_their_arithmetic(tmp_path: Path) -> None:
    runs, found = judged(load_config(None), machine(tmp_path / "much"))
    assert runs
    told = found["KV memory"].found
    assert "1 x prefill: 4096 pages, 385 MiB: 32 contexts of 4096 tokens, which is all that can be of use" in told
    assert told.endswith("MiB in all, 8,192 MiB are available")
    little = {"proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 262144 kB\n"}
    runs, found = judged(load_config(None), machine(tmp_path / "little", little))
    assert runs
    assert "0.5 of what 256 MiB free, a part of 3, leave beside weights of" in found["KV memory"].found


@pytest.mark.parametrize(
    ("free_mib", "workers", "message"),
    [
        (13, 1, "engine.kv_memory_share: weights of 3 MiB and 128 pages of 98304 bytes, the least for one"),
        (40, 4, "4 x d: 128 pages, 13 MiB: the least that work"),
    ],
)
def test_pools_that_do_not_fit_are_a_fault(free_mib: int, workers: int, message: str, tmp_path: Path) -> None:
    config = parse_config({"workers": [{"name": "d", "role": "decode", "count": workers}]}, "test")
    runs, found = judged(config, machine(tmp_path, {"proc/meminfo": f"MemAvailable: {free_mib << 10} kB\n"}))
    assert not runs
    assert found["KV memory"].level is Level.FAULT
    assert message in found["KV memory"].found


def test_workers_on_gpus_need_one_each(tmp_path: Path) -> None:
    config = changed(workers=[{"name": "d", "role": "decode", "device": "cuda", "count": 2}])
    runs, found = judged(config, machine(tmp_path / "none"))
    assert not runs
    assert "there is no /dev/nvidia0" in found["decode pool d"].found
    runs, found = judged(config, machine(tmp_path / "one", {"dev/nvidia0": ""}))
    assert not runs
    assert found["decode pool d"].found == "2 x cuda x1, and 1 GPUs"
    runs, found = judged(config, machine(tmp_path / "two", {"dev/nvidia0": "", "dev/nvidia1": ""}))
    assert runs
    assert found["decode pool d"].found == "2 x cuda x1"


def test_torch_is_needed_unless_the_model_is_simulated(tmp_path: Path) -> None:
    bare = machine(tmp_path, packages={name: version for name, version in PACKAGES.items() if name != "torch"})
    assert not judged(load_config(None), bare)[0]
    assert judged(load_config(CONFIGS / "simulated.yaml"), bare)[0]


def test_ranks_are_told_and_those_that_cannot_share_the_model_are_a_fault(tmp_path: Path) -> None:
    two = {"name": "d", "role": "decode", "threads": 2, "tensor_parallel": 2}
    runs, found = judged(changed(workers=[two]), machine(tmp_path))
    assert runs
    assert found["decode pool d"].found == "1 x cpu x2 in 2 ranks"
    runs, found = judged(changed(workers=[two | {"threads": 64, "tensor_parallel": 64}]), machine(tmp_path))
    assert not runs
    assert found["model"].level is Level.FAULT
    assert "64 ranks cannot share its" in found["model"].found


def test_more_threads_than_processors_are_told_and_no_fault(tmp_path: Path) -> None:
    runs, found = judged(changed(workers=[{"name": "d", "role": "decode", "threads": 64}]), machine(tmp_path))
    assert runs
    assert found["decode pool d"].level is Level.LOW


@pytest.mark.skipif(Path("/dev/neuron0").exists(), reason="there is a Neuron device")
def test_the_exit_status_says_whether_the_configuration_runs_here() -> None:
    for name, status in (("local", 0), ("trainium", 1)):
        result = RUNNER.invoke(app, ["doctor", "--config", str(CONFIGS / f"{name}.yaml"), "--json"])
        assert result.exit_code == status
        told = json.loads(result.stdout)
        assert told["runs"] is (status == 0)
        assert {finding["area"] for finding in told["findings"]} == {"machine", "devices", "libraries", "configuration"}


def test_without_a_configuration_there_is_no_verdict() -> None:
    result = RUNNER.invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["runs"] is None


def test_a_person_reads_what_was_found_and_the_verdict() -> None:
    result = RUNNER.invoke(app, ["doctor", "--config", str(CONFIGS / "local.yaml")])
    assert result.exit_code == 0
    assert "decode pool decode" in result.stdout
    assert result.stdout.rstrip().endswith("local.yaml runs here")


def test_nixl_that_is_asked_for_by_name_has_to_start(tmp_path: Path) -> None:
    asked = changed(handoff={"transport": "nixl"})
    assert judged(asked, machine(tmp_path / "a", NEURON))[1]["transport"].found == "nixl by UCX"
    runs, found = judged(asked, machine(tmp_path / "b", NEURON, programs={}))
    assert not runs
    assert found["transport"].level is Level.FAULT
    assert "transport" not in judged(TRAINIUM, machine(tmp_path / "c", NEURON, programs={}))[1]
