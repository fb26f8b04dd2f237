"""Machines that are only files: what the checks would read of a real one."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runtime.cli.doctor.node import Finding, Node
from runtime.engine.neuron.preflight import Surroundings

PACKAGES = {
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "grpcio": "1.85.1",
    "ray": "2.60.0",
    "torch-neuronx": "2.13.3",
    "neuronx-cc": "2.30.1",
    "nki": "0.5.0",
    "nixl-cu12": "1.5.1",
}
FILES = {
    "proc/cpuinfo": "".join(f"processor\t: {number}\nmodel name\t: A processor\n\n" for number in range(4)),
    "proc/meminfo": "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n",
    "proc/self/limits": (
        "Limit                     Soft Limit           Hard Limit           Units\n"
        "Max open files            1048576              1048576              files\n"
        "Max locked memory         unlimited            unlimited            bytes\n"
    ),
    "dev/shm/.keep": "",
}
NEURON = {"dev/neuron0": "", "dev/neuron1": "", "sys/module/neuron/version": "2.24.1\n"}
EFA = {"sys/class/infiniband/rdmap0s6/device/vendor": "0x1d0f\n"}
NVIDIA = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\n",
    "proc/driver/nvidia/gpus/0000:18:00.0/information": "Model: a GPU\n",
}
_PROGRAMS = {
    "nvidia-smi": "NVIDIA H200, 143771 MiB\n",
    "fi_info --version": "fi_info: 2.1.0\nlibfabric: 2.1.0amzn1.0\nlibfabric api: 2.1\n",
    "fi_info -p": "provider: efa\n",
    "gcc --version": "gcc (Debian) 12.2.0\nCopyright\n",
    f"{sys.executable} -m runtime.kv.transport.nixl.trying UCX": "DRAM, VRAM\n",
}
_WHEEL = [".nixl_cu12.mesonpy.libs/plugins/libplugin_UCX.so", "nixl_cu12/__init__.py"]


def machine(
    root: Path,
    *kinds: Mapping[str, str],
    packages: Mapping[str, str] = PACKAGES,
    programs: Mapping[str, str] = _PROGRAMS,
) -> Node:
    for path, content in {name: text for kind in (FILES, *kinds) for name, text in kind.items()}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)

    def run(command: Sequence[str]) -> str | None:
        line = " ".join(command)
        return next((output for start, output in programs.items() if line.startswith(start)), None)

    return Node(Surroundings(root, packages.get, lambda name: False, {}), run, lambda package: _WHEEL)


def by_name(check: Callable[[Node], list[Finding]], node: Node) -> dict[str, Finding]:
    return {finding.name: finding for finding in check(node)}
