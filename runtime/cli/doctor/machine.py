"""The machine itself: processors, memory, and the limits that processes live under."""

import os
import re

from runtime.cli.doctor.node import Finding, Level, Node

AREA = "machine"
_GIB = 1 << 30
# A gateway holds a connection for each client, Ray some hundreds for itself.
_OPEN_FILES = 65_536


def check_machine(node: Node) -> list[Finding]:
    return [
        _processors(node),
        _memory(node),
        _shared_memory(node),
        _open_files(node),
        _locked_memory(node),
        _compiler(node),
    ]


def _processors(node: Node) -> Finding:
    model = re.search(r"^model name\s*:\s*(.+)$", node.text("proc/cpuinfo"), re.MULTILINE)
    return Finding(AREA, "processors", Level.GOOD, f"{node.processors()} x {model[1] if model else 'unknown'}")


def _memory(node: Node) -> Finding:
    total, free = (node.memory_bytes(kind) / _GIB for kind in ("MemTotal", "MemAvailable"))
    return Finding(AREA, "memory", Level.GOOD, f"{total:.1f} GiB, {free:.1f} of them available")


def _shared_memory(node: Node) -> Finding:
    try:
        status = os.statvfs(node.root / "dev" / "shm")
    except OSError:
        return Finding(AREA, "shared memory", Level.MISSING, "no /dev/shm", "in a container: --shm-size 1g")
    return Finding(AREA, "shared memory", Level.GOOD, f"{status.f_blocks * status.f_frsize / _GIB:.1f} GiB")


def _open_files(node: Node) -> Finding:
    limit = _limit(node, "Max open files")
    enough = limit == "unlimited" or int(limit or 0) >= _OPEN_FILES
    return Finding(
        AREA,
        "open files",
        Level.GOOD if enough else Level.LOW,
        limit or "unknown",
        "" if enough else f"ulimit -n {_OPEN_FILES}, or LimitNOFILE of the service",
    )


def _locked_memory(node: Node) -> Finding:
    limit = _limit(node, "Max locked memory")
    enough = limit == "unlimited"
    return Finding(
        AREA,
        "locked memory",
        Level.GOOD if enough else Level.LOW,
        limit if not limit.isdigit() else f"{int(limit) // 1024} KiB",
        "" if enough else "only EFA and other RDMA need it: ulimit -l unlimited, or LimitMEMLOCK of the service",
    )


def _compiler(node: Node) -> Finding:
    told = node.run(("cc", "--version")) or node.run(("gcc", "--version"))
    if told:
        return Finding(AREA, "C compiler", Level.GOOD, told.splitlines()[0])
    remedy = "without it the engine is slower on a CPU: apt-get install gcc libc6-dev"
    return Finding(AREA, "C compiler", Level.LOW, "none", remedy)


def _limit(node: Node, name: str) -> str:
    """The soft limit of this process."""
    found = re.search(rf"^{name}\s+(\S+)", node.text("proc/self/limits"), re.MULTILINE)
    return found[1] if found else ""
