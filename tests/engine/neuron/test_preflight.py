"""What is missing for a Neuron device is told by its name, with how to get it, before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from runtime.engine.neuron.build import open_neuron
from runtime.engine.neuron.preflight import Surroundings, check_neuron, meaning, settings_for_process
from runtime.errors import StartError

GOOD = {"torch-neuronx": "2.13.3.1.2", "neuronx-cc": "2.30.1", "nki": "0.5.0", "vllm-neuron": "1.2.0"}


def machine(
    root: Path,
    packages: Mapping[str, str] = GOOD,
    environment: Mapping[str, str] | None = None,
    modules: tuple[str, ...] = ("libtorch_neuronx_lite",),
    devices: int = 1,
) -> Surroundings:
    (root / "dev").mkdir()
    for number in range(devices):
        (root / "dev" / f"neuron{number}").touch()
    return Surroundings(root, packages.get, lambda name: name in modules, environment or {})


@pytest.mark.parametrize("api", ["torch", "lite"])
def test_a_machine_with_packages_and_a_device_passes(api: str, tmp_path: Path) -> None:
    check_neuron(api, 2, machine(tmp_path, environment={"NEURON_LOGICAL_NC_CONFIG": "2"}))


@pytest.mark.parametrize(
    ("api", "packages", "message"),
    [
        ("torch", {}, r"torch-neuronx is not installed: pip install \"torch-neuronx==2\.13"),
        ("torch", {"torch-xla": "2.9.0"}, r"only torch-xla, whose use ended with torch 2\.9"),
        ("torch", GOOD | {"torch-neuronx": "1.0"}, r"torch-neuronx 1\.0 is a placeholder from PyPI"),
        ("torch", GOOD | {"nki": "0.0.1"}, r"nki 0\.0\.1 is a placeholder from PyPI.*pip uninstall nki"),
        ("torch", GOOD | {"torch-neuronx": "2.14.3"}, r"torch-neuronx 2\.14\.3 is for another torch than 2\.13"),
        ("lite", GOOD | {"vllm-neuron": "0.1.0"}, r"vllm-neuron 0\.1\.0 is a placeholder from PyPI"),
    ],
)
def test_a_package_that_will_not_do_is_named(api: str, packages: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=message):
        check_neuron(api, None, machine(tmp_path, packages))


def test_a_lite_module_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="libtorch_neuronx_lite is missing"):
        check_neuron("lite", None, machine(tmp_path, modules=()))


def test_a_missing_driver_is_told_with_what_stands_in(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"no /dev/neuron0.*aws-neuronx-dkms.*`stand_in: true`"):
        check_neuron("torch", None, machine(tmp_path, devices=0))


@pytest.mark.parametrize(
    ("wanted", "environment", "message"),
    [
        (1, {"NEURON_LOGICAL_NC_CONFIG": "2"}, "neuron.logical_nc says 1, NEURON_LOGICAL_NC_CONFIG says 2"),
        (2, {"NEURON_CC_FLAGS": "--verbose 1 --lnc=1"}, "neuron.logical_nc says 2, NEURON_CC_FLAGS says 1"),
        (
            None,
            {"NEURON_LOGICAL_NC_CONFIG": "1", "NEURON_CC_FLAGS": "--logical-nc-config 2"},
            "NEURON_LOGICAL_NC_CONFIG says 1, NEURON_CC_FLAGS says 2",
        ),
    ],
)
def test_logical_cores_that_differ_are_told_by_who_says_what(
    wanted: int | None, environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match=message):
        check_neuron("torch", wanted, machine(tmp_path, environment=environment))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ERROR NRT:nrt_allocate_neuron_cores NeuronCore(s) not available - Requested:1 Available:0", "reserved by"),
        ("[NCC_EARG001] Unsupported Logical Neuron Core (LNC) configuration", "neuron.logical_nc"),
        ("No neuron device available", "aws-neuronx-dkms"),
        ("WRONG PACKAGE: install it from the vendor", "placeholder from PyPI"),
    ],
)
def test_what_the_vendor_s_packages_raise_is_told_in_our_words(text: str, told: str) -> None:
    assert told in (meaning(RuntimeError(text)) or "")


def test_an_error_that_is_not_known_keeps_its_own_words() -> None:
    assert meaning(RuntimeError("shape mismatch")) is None


@pytest.mark.parametrize("api", ["torch", "lite"])
def test_a_device_that_does_not_open_is_told_and_not_raised_as_an_import(api: str) -> None:
    with pytest.raises(StartError, match=r"device neuron: it does not open: ModuleNotFoundError: .*neuronx"):
        open_neuron(api, None)


def test_the_process_is_set_up_so_that_nothing_falls_back_to_the_cpu() -> None:
    assert settings_for_process(2, Path("/cache")) == {
        "TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION": "1",
        "NEURON_LOGICAL_NC_CONFIG": "2",
        "TORCH_NEURONX_NEFF_CACHE_DIR": "/cache",
    }
    assert settings_for_process(None, None) == {"TORCH_NEURONX_DISABLE_FALLBACK_EXECUTION": "1"}
