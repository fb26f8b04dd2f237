"""Gateways in processes of their own, to be killed and frozen."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.mesh.local import LocalMesh


@contextmanager
def gateway(mesh: LocalMesh, port: int, point: str = "", *, skew_s: float = 0.0) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts one of a mesh, that dies at a point of `tests.mesh.crashing_gateway`, if any, and whose clock is wrong by
    so many seconds; killed in the end."""
    arguments = [mesh.config.model_dump_json(), mesh.controller.address, str(port), point, str(skew_s)]
    process = subprocess.Popen([sys.executable, "-m", "tests.mesh.crashing_gateway", *arguments])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
