"""Each check says what a machine has and how to get what it lacks, of machines that are only files."""

from pathlib import Path

import pytest

from runtime.cli.doctor.accelerators import check_accelerators
from runtime.cli.doctor.libraries import check_libraries
from runtime.cli.doctor.machine import check_machine
from runtime.cli.doctor.node import Level, Node, packaged_files, run_command
from tests.cli.doctor.machines import EFA, FILES, NEURON, NVIDIA, PACKAGES, by_name, machine


def test_a_machine_is_told_by_its_processors_memory_and_limits(tmp_path: Path) -> None:
    found = by_name(check_machine, machine(tmp_path))
    assert found["processors"].found == "4 x A processor"
    assert found["memory"].found == "16.0 GiB, 8.0 of them available"
    assert found["open files"].found == "1048576"
    assert found["C compiler"].found == "gcc (Debian) 12.2.0"
    assert {finding.level for finding in found.values()} == {Level.GOOD}


def test_low_limits_are_told_with_how_to_raise_them(tmp_path: Path) -> None:
    limits = FILES["proc/self/limits"].replace("1048576 ", "1024 ", 1).replace("unlimited", "8388608", 1)
    found = by_name(check_machine, machine(tmp_path, {"proc/self/limits": limits}))
    assert (found["open files"].level, found["open files"].found) == (Level.LOW, "1024")
    assert "ulimit -n 65536" in found["open files"].remedy
    assert (found["locked memory"].level, found["locked memory"].found) == (Level.LOW, "8192 KiB")


def test_an_empty_machine_breaks_no_check(tmp_path: Path) -> None:
    node = machine(tmp_path, packages={}, programs={})
    for path in FILES:
        (tmp_path / path).unlink()
    (tmp_path / "dev" / "shm").rmdir()
    found = [*check_machine(node), *check_accelerators(node), *check_libraries(node)]
    lacking = {finding.name for finding in found if finding.level is Level.MISSING}
    assert {"shared memory", "NVIDIA", "Neuron", "EFA", "libfabric", "torch", "nixl"} <= lacking
    assert {finding.name for finding in found if finding.level is Level.LOW} >= {"C compiler"}
    assert all(finding.remedy for finding in found if finding.level is Level.MISSING and finding.name != "NVIDIA")


def test_neuron_devices_are_told_with_their_driver_and_packages(tmp_path: Path) -> None:
    found = by_name(check_accelerators, machine(tmp_path, NEURON))
    assert found["Neuron"].found == "2 devices, driver 2.24.1"
    assert found["torch-neuronx"].found == "2.13.3"
    assert found["nki"].level is Level.GOOD


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (PACKAGES | {"torch-neuronx": "1.0"}, "torch-neuronx 1.0 is a placeholder from PyPI"),
        (PACKAGES | {"torch-neuronx": "2.14.3"}, "torch-neuronx 2.14.3 is for another torch than 2.13"),
        ({"torch": "2.13.0"}, "torch-neuronx is not installed"),
    ],
)
def test_packages_that_will_not_do_beside_a_device_are_told(
    packages: dict[str, str], message: str, tmp_path: Path
) -> None:
    found = by_name(check_accelerators, machine(tmp_path, NEURON, packages=packages))["torch-neuronx"]
    assert found.level is Level.MISSING
    assert message in found.found
    assert "pip install" in found.remedy


def test_gpus_are_told_by_name_and_driver(tmp_path: Path) -> None:
    found = by_name(check_accelerators, machine(tmp_path, NVIDIA))
    assert found["NVIDIA"].found == "NVIDIA H200, 143771 MiB, driver 580.65.06"


def test_gpus_without_their_tool_are_counted(tmp_path: Path) -> None:
    assert by_name(check_accelerators, machine(tmp_path, NVIDIA, programs={}))["NVIDIA"].found.startswith("1 GPUs")


def test_efa_is_told_apart_from_other_adapters(tmp_path: Path) -> None:
    other = {"sys/class/infiniband/mlx5_0/device/vendor": "0x15b3\n"}
    assert by_name(check_accelerators, machine(tmp_path / "a", other))["EFA"].level is Level.MISSING
    found = by_name(check_accelerators, machine(tmp_path / "b", other, EFA))
    assert found["EFA"].found == "1 adapters: rdmap0s6"
    assert found["libfabric"].found == "2.1.0amzn1.0, with EFA"


def test_an_old_libfabric_is_told(tmp_path: Path) -> None:
    old = {"fi_info --version": "libfabric: 1.17.0\n"}
    found = by_name(check_accelerators, machine(tmp_path, EFA, programs=old))["libfabric"]
    assert found.level is Level.MISSING
    assert found.found == "1.17.0, without EFA"


def test_nixl_is_told_with_the_plugins_that_its_wheel_has(tmp_path: Path) -> None:
    found = by_name(check_libraries, machine(tmp_path))
    assert found["nixl"].found == "nixl-cu12 1.5.1"
    assert found["nixl plugin UCX"].found == "starts; writes from and into DRAM, VRAM"
    assert found["nixl plugin LIBFABRIC"].found == "not in the wheel"


def test_a_plugin_of_nixl_that_does_not_start_is_missing(tmp_path: Path) -> None:
    found = by_name(check_libraries, machine(tmp_path, programs={}))["nixl plugin UCX"]
    assert (found.level, found.found) == (Level.MISSING, "there, and does not start")


def test_this_machine_can_be_looked_at() -> None:
    node = Node()
    found = by_name(check_libraries, node)
    assert found["torch"].level is Level.GOOD
    assert node.processors() > 0
    assert node.memory_bytes("MemTotal") > 0
    assert run_command(["no such program"]) is None
    assert run_command(["false"]) is None
    assert run_command(["echo", "here"]) == "here\n"
    assert any("grpc" in file for file in packaged_files("grpcio"))
    assert packaged_files("no such package") == []
