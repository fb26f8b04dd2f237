"""Stores that tiers keep pages in: a folder, and a bucket of a real S3 server in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from runtime.kv.tiers.objects import Objects, open_objects

PATIENCE_S = 5.0
_STARTED_S = 60.0


@dataclass
class S3Server:
    """A server of S3's protocol, to be killed or stopped."""

    port: int
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def bucket(self) -> str:
        """A new one, as the URL of a place in it."""
        name = f"pages-{uuid.uuid4().hex[:8]}"
        httpx.put(f"{self.url}/{name}", timeout=30).raise_for_status()
        return f"s3://{name}/mesh"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The credentials that an operator would set, and nothing of this machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    return monkeypatch


@dataclass
class Servers:
    """Servers of one test session; one that a test killed is replaced."""

    running: list[S3Server] = field(default_factory=list)

    def living(self) -> S3Server:
        if not self.running or self.running[-1].process.poll() is not None:
            self.running.append(self._start())
        return self.running[-1]

    def _start(self) -> S3Server:
        port = _free_port()
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        server, ends = S3Server(port, process), time.monotonic() + _STARTED_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return server
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < ends, "the server is not there in time"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    for server in servers.running:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGCONT)
        server.kill()


@pytest.fixture
def s3(servers: Servers, environment: pytest.MonkeyPatch) -> S3Server:
    server = servers.living()
    environment.setenv("AWS_ENDPOINT_URL", server.url)
    return server


OpenStore = Callable[[], Objects]


@pytest.fixture(params=["folder", "bucket"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens one empty store, as often as is asked."""
    where = str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3").bucket()
    return lambda: open_objects(where, PATIENCE_S)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB, where this machine lets us have one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(
            f"a small disk needs a tmpfs, and mounting one is not allowed here: {mounted.stderr.decode().strip()}"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
