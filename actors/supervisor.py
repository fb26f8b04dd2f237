"""The one process that owns a running mesh: starts it, attends to it, and clears away all of it, and nothing else.

Runs in a session of its own. Its orders come on stdin: the configuration as JSON in the first line, then `detach` when
it is to outlive whoever gave it; else the end of stdin ends the mesh, as SIGTERM does. Events go out on stdout.
"""

import logging
import os
import secrets
import signal
import sys
import threading
import time
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import FrameType

from actors.environment import attaching, remove_scratch, scratch_folder, starting, write_token
from actors.events import Failed, Ready, Step, Stopped, Teller
from actors.processes import end_run, mark
from actors.state import Record, StateFolder
from runtime.config import Config
from runtime.errors import SetupError
from runtime.mesh.engines import check_devices
from runtime.mesh.listening import free_ports, require_free, require_listener
from runtime.mesh.models import check_model
from runtime.mesh.security import check_security, in_words
from runtime.mesh.tenants import open_tenants
from runtime.telemetry import log_to_stderr

_PATIENCE_S = 5.0
_ATTEND_S = 0.5
_log = logging.getLogger(__name__)


class _Stop(BaseException):
    """Raised in the main thread, wherever it is, by a signal."""


def main() -> None:
    events = os.dup(1)
    teller = Teller(events)
    orders = FileIO(0, closefd=False)
    config = Config.model_validate_json(orders.readline())
    _take_signals()
    threading.Thread(target=_follow, args=(orders,), name="orders", daemon=True).start()
    status = 1
    try:
        supervise(config, teller)
    except _Stop:
        teller.tell(Stopped())
        status = 0
    except SetupError as error:
        teller.tell(Failed(message=str(error)))
    except Exception as error:  # noqa: BLE001 - the root of a process
        _log.exception("the supervisor failed")
        log = StateFolder(config.state).log
        teller.tell(Failed(message=f"{type(error).__name__}: {error} (a fault of Baton's or of Ray's; see {log})"))
    sys.exit(status)


def supervise(config: Config, teller: Teller) -> None:
    """Run the mesh until `_Stop`; raises `SetupError` when it cannot start. Leaves nothing behind either way."""
    folder = StateFolder(config.state)
    with folder.held(), ExitStack() as stack:
        _write_log(folder.log)
        clear_leftovers(folder)
        _check(config)
        scratch = stack.enter_context(scratch_folder())
        record = Record(
            mesh=config.mesh.name,
            run=secrets.token_hex(8),
            pid=os.getpid(),
            since=time.time(),
            scratch=scratch,
            log=folder.log,
            own=config.ray.address is None,
            security=in_words(config),
        )
        stack.callback(folder.forget)
        folder.write(record)
        stack.callback(end_run, record.run, _PATIENCE_S)
        stack.callback(_ignore_signals)
        _set_environment(config, folder, record)
        _serve(config, folder, record, teller)


def clear_leftovers(folder: StateFolder) -> bool:
    """End what a killed supervisor left, by the mark that its record tells; False when none did. Under the lock."""
    left = folder.read()
    if left is None:
        return False
    ended = end_run(left.run, _PATIENCE_S)
    remove_scratch(left.scratch)
    folder.forget()
    _log.warning("cleared away what a killed mesh left", extra={"run": left.run, "processes": ended})
    return True


def _check(config: Config) -> None:
    """All that can be known to fail before Ray is started, which takes long."""
    check_model(config)
    check_security(config)
    gateway = config.gateway
    if config.ray.address is not None and config.ray.address != "auto":
        require_listener(config.ray.address, "ray.address", _PATIENCE_S)  # Ray itself would try for many minutes
    if config.ray.address is None:
        check_devices(config)
        require_free(gateway.host, gateway.http_port, "gateway.http_port")
        require_free(config.ray.dashboard_host, config.ray.dashboard_port, "ray.dashboard_port")
    require_free(gateway.host, gateway.grpc_port, "gateway.grpc_port")


def _set_environment(config: Config, folder: StateFolder, record: Record) -> None:
    os.environ.update(mark(record.run))
    if config.ray.address is not None:
        os.environ.update(attaching())
        return
    write_token(folder.token)
    metrics, stats = free_ports(2)
    settings = config.ray
    os.environ.update(
        starting(
            record.scratch,
            folder.token,
            settings.haproxy_metrics_port or metrics,
            settings.haproxy_stats_port or stats,
        )
    )


def _serve(config: Config, folder: StateFolder, record: Record, teller: Teller) -> None:
    teller.tell(Step(part="ray", detail="starting" if record.own else "connecting"))
    from actors.cluster import node_host, others_cluster, own_cluster  # Ray reads its environment when imported
    from actors.deployment import Deployment, local_addresses

    own = record.own
    with own_cluster(config, record.scratch) if own else others_cluster(config) as cluster:
        _take_signals()  # Ray has put handlers of its own
        teller.tell(Step(part="ray", detail=cluster.dashboard or cluster.address, done=True))
        record = record.model_copy(update={"cluster": cluster.address, "dashboard": cluster.dashboard})
        tenants = dict(open_tenants(folder.root, config.access.tenants))
        deployment = Deployment(config, tenants, folder.next_incarnation, node_host(config), teller.tell)
        if not own:
            deployment.delete()  # what a supervisor left that was killed
        try:
            deployment.start()
            where = local_addresses(config)
            record = record.model_copy(update={"grpc": where.grpc, "http": where.http, "ready": True})
            folder.write(record)
            teller.tell(Ready(record=record))
            while True:
                time.sleep(_ATTEND_S)
                deployment.attend()
        finally:
            if record.ready or not own:
                deployment.delete()
            deployment.settle()


def _write_log(file: Path) -> None:
    """Send stdout and stderr, Ray's too, to the log; that of the mesh before is kept beside it."""
    if file.exists():
        file.replace(file.with_suffix(".log.1"))
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    log_to_stderr("supervisor")


def _follow(orders: FileIO) -> None:
    """Without the order to detach, whoever gives the orders must live."""
    if b"detach\n" not in orders:
        os.kill(os.getpid(), signal.SIGTERM)


def _take_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _stop(_number: int, _frame: FrameType | None) -> None:
    """The first time this ends the mesh, the second time its draining."""
    raise _Stop


if __name__ == "__main__":
    main()
