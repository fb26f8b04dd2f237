"""Accelerators and the network between them: devices, drivers, and the vendor's packages."""

import re

from runtime.cli.doctor.node import Finding, Level, Node
from runtime.engine.neuron.preflight import devices, package_fault

AREA = "devices"
_NEURON_PACKAGES = ("torch-neuronx", "neuronx-cc", "nki")
_NEURON_INSTANCES = "instances of type trn2 and trn3 have one"


def check_accelerators(node: Node) -> list[Finding]:
    return [_nvidia(node), *_neuron(node), _efa(node), _libfabric(node)]


def _nvidia(node: Node) -> Finding:
    driver = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", node.text("proc/driver/nvidia/version"))
    gpus = node.names("proc/driver/nvidia/gpus")
    if not gpus:
        return Finding(AREA, "NVIDIA", Level.MISSING, "no GPU, or no driver for it")
    listed = node.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"])
    names = "; ".join(listed.splitlines()) if listed else f"{len(gpus)} GPUs"
    return Finding(AREA, "NVIDIA", Level.GOOD, f"{names}, driver {driver[1] if driver else 'unknown'}")


def _neuron(node: Node) -> list[Finding]:
    found = devices(node.around)
    if not found:
        return [Finding(AREA, "Neuron", Level.MISSING, "no /dev/neuron*", _NEURON_INSTANCES)]
    version = node.text("sys/module/neuron/version").strip() or "unknown"
    return [
        Finding(AREA, "Neuron", Level.GOOD, f"{len(found)} devices, driver {version}"),
        *(_package(node, package) for package in _NEURON_PACKAGES),
    ]


def _package(node: Node, package: str) -> Finding:
    fault = package_fault(package, node.around)
    if fault is None:
        return Finding(AREA, package, Level.GOOD, node.around.version(package) or "")
    found, _, remedy = fault.partition(": ")
    return Finding(AREA, package, Level.MISSING, found, remedy)


def _efa(node: Node) -> Finding:
    links = [name for name in node.names("sys/class/infiniband") if _is_efa(node, name)]
    if not links:
        return Finding(AREA, "EFA", Level.MISSING, "no adapter", "attach one to the instance, and install its driver")
    return Finding(AREA, "EFA", Level.GOOD, f"{len(links)} adapters: {', '.join(links)}")


def _is_efa(node: Node, adapter: str) -> bool:
    """By the driver of its device; Amazon's PCI vendor where the link to it cannot be read."""
    driver = node.root / "sys/class/infiniband" / adapter / "device" / "driver"
    vendor = node.text(f"sys/class/infiniband/{adapter}/device/vendor").strip()
    return driver.resolve().name == "efa" or vendor == "0x1d0f"


def _libfabric(node: Node) -> Finding:
    version = re.search(r"libfabric: (\d+)\.(\S+)", node.run(["fi_info", "--version"]) or "")
    if version is None:
        return Finding(
            AREA, "libfabric", Level.MISSING, "no fi_info", "comes with the EFA installer, under /opt/amazon/efa"
        )
    provider = node.run(["fi_info", "-p", "efa", "-t", "FI_EP_RDM"])
    what = f"{version[1]}.{version[2]}, " + ("with EFA" if provider else "without EFA")
    if int(version[1]) < 2:
        return Finding(
            AREA, "libfabric", Level.MISSING, what, "NIXL's LIBFABRIC needs 2 or newer: update the EFA installer"
        )
    return Finding(AREA, "libfabric", Level.GOOD if provider else Level.MISSING, what)
