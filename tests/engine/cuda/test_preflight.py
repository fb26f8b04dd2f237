"""What is said where there is no GPU, by the mesh that is to start and by the doctor."""

from pathlib import Path

import pytest

from runtime.engine.cuda.preflight import check_gpu, gpus
from runtime.engine.neuron.preflight import Surroundings
from runtime.errors import StartError


def machine(root: Path, *devices: str) -> Surroundings:
    (root / "dev").mkdir()
    for device in devices:
        (root / "dev" / device).touch()
    return Surroundings(root)


def test_gpus_are_what_the_driver_shows(tmp_path: Path) -> None:
    here = machine(tmp_path, "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null")
    assert gpus(here) == ["nvidia0", "nvidia1"]
    check_gpu(here)


def test_a_machine_without_one_is_told_by_the_device(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="device cuda: there is no /dev/nvidia0"):
        check_gpu(machine(tmp_path, "nvidiactl", "null"))
