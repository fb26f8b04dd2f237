"""A mesh on a real Ray cluster, run by the real command line; and what of it is left when it is gone."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from actors.processes import of_run
from actors.state import Record, StateFolder
from runtime.mesh.listening import free_ports

START_S = 400.0
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Done:
    """What a command said."""

    status: int
    out: str
    err: str


class Mesh:
    """A small simulated mesh of its own name, ports and state folder. `changes` are sections of its configuration."""

    def __init__(self, folder: Path, name: str, **changes: object) -> None:
        self.http_port, self.grpc_port, self.dashboard_port = free_ports(3)
        self.folder = StateFolder(folder / name)
        self.file = folder / f"{name}.yaml"
        content: dict[str, Any] = {
            "mesh": {"name": name, "state": str(self.folder.root)},
            "model": {"simulated": {"max_tokens": 4096, "base_ms": 2}},
            "engine": {"pages": 1024, "page_tokens": 8, "step_tokens": 64},
            "handoff": {"remote_min_tokens": 16},
            "timing": {"lease_s": 4},
            "gateway": {"http_port": self.http_port, "grpc_port": self.grpc_port, "drain_s": 5},
            "ray": {"dashboard_port": self.dashboard_port, "start_s": START_S},
        }
        for section, values in changes.items():
            content[section] = content.get(section, {}) | values if isinstance(values, dict) else values
        self.file.write_text(yaml.safe_dump(content))

    def baton(self, command: str, *options: str, **environment: str) -> Done:
        """Runs a command on this mesh to its end."""
        with self.begin(command, *options, **environment) as process:
            out, err = process.communicate(timeout=START_S)
        return Done(process.returncode, out, err)

    def begin(self, command: str, *options: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "actors.main", command, "--config", str(self.file), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"COLUMNS": "400"} | environment,
        )

    @property
    def record(self) -> Record:
        record = self.folder.read()
        assert record is not None
        return record

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def workers(self) -> dict[str, dict[str, object]]:
        """The rows of `baton status`, by worker."""
        done = self.baton("status", "--json")
        assert done.status == 0, done.err
        return {row["worker"]: row for row in json.loads(done.out)["workers"]}


def shared_memory() -> set[str]:
    """What Ray has in the shared memory of this machine."""
    return {path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(("plasma", "ray"))}


def listening() -> dict[int, int | None]:
    """Who listens on which port of this machine: pids by port."""
    connections = psutil.net_connections("tcp")
    return {each.laddr.port: each.pid for each in connections if each.laddr and each.status == psutil.CONN_LISTEN}


def process_at(address: object, run: str) -> psutil.Process:
    """The process of a run that listens on host:port."""
    pid = listening()[int(str(address).rpartition(":")[2])]
    (process,) = (process for process in of_run(run) if process.pid == pid)
    return process


def check_nothing_left(mesh: Mesh, record: Record, before: set[str]) -> None:
    """Processes, ports, shared memory, the temporary folder, and the record. `before` is what `shared_memory` was."""
    assert of_run(record.run) == []
    assert not psutil.pid_exists(record.pid)
    assert listening().keys() & {mesh.http_port, mesh.grpc_port, mesh.dashboard_port} == set()
    assert shared_memory() <= before
    assert not record.scratch.exists()
    assert mesh.folder.holder() is None
    assert mesh.folder.read() is None
