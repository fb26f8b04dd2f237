"""The environment that makes Ray ours before it is imported: authenticated, private in ports and files, quick to stop.

Ray reads most of it once, at its import, and hands it on to every process that it starts.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The paths of sockets end after 107 bytes, and Ray's and HAProxy's own parts take 88 of them: no state folder is short
# enough for that, and neither may be what TMPDIR names.
_SCRATCH = "/tmp"
_FEW_CORES = 4


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for Ray's sockets and logs, gone with the context."""
    folder = Path(tempfile.mkdtemp(prefix="baton-", dir=_SCRATCH))
    try:
        (folder / "t").mkdir()
        yield folder
    finally:
        remove_scratch(folder)


def remove_scratch(folder: Path) -> None:
    """Remove what `scratch_folder` made; nothing else is ever removed."""
    if folder.parent == Path(_SCRATCH) and folder.name.startswith("baton-"):
        shutil.rmtree(folder, ignore_errors=True)


def write_token(file: Path) -> None:
    """Make the token without which nobody may speak to the cluster, unless it is there."""
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as target:
            target.write(secrets.token_hex(32))


def attaching() -> dict[str, str]:
    """For a cluster of somebody else, whose token Ray finds by its own rules."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # A proxy that starts on a busy machine would be killed after 5 s, again and again.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    }


def starting(scratch: Path, token: Path, metrics_port: int, stats_port: int) -> dict[str, str]:
    """For a cluster of our own, which keeps all its files under `scratch`."""
    proxy = scratch / "h"
    return attaching() | {
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray starts its workers nice, as for batch work; ours serve.
        "RAY_worker_niceness": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1" if (os.cpu_count() or 1) <= _FEW_CORES else "4",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(proxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(proxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(proxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(proxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(proxy / "server-state"),
        "TMPDIR": str(scratch / "t"),
    }
