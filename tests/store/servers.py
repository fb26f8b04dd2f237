"""A real PostgreSQL server of the tests' own, on a socket in a folder that goes with it."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# It refuses to run as root.
_OTHER = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}


@contextmanager
def postgres() -> Iterator[str]:
    """Yields the DSN of a database that nobody else uses; where there is no server, says so and skips the test."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("there is no PostgreSQL here: initdb and pg_ctl are not on the PATH")
    folder = Path(tempfile.mkdtemp(prefix="baton-postgres-"))
    try:
        if _OTHER:
            shutil.chown(folder, **_OTHER)
        data = folder / "data"
        _run("initdb", "--pgdata", data, "--username", "baton", "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c max_connections=100"
        _run("pg_ctl", "--pgdata", data, "--wait", "--log", folder / "log", "--options", options, "start")
        try:
            yield f"postgresql://baton@/postgres?host={folder}"
        finally:
            _run("pg_ctl", "--pgdata", data, "--mode", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def empty(dsn: str) -> None:
    _run("psql", dsn, "--quiet", "--command", "DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", **_OTHER)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
