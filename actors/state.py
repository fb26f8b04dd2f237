"""What a mesh keeps in its state folder while it runs: a lock, a record of itself, its log. Never the secrets."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.errors import StartError

_TRIES = 5
_TRY_S = 0.05


class Record(BaseModel):
    """What is known of the mesh that runs, or of one that was killed before it could tidy up.

    `run` marks all its processes; `pid` is the supervisor's and `since` its start, seconds since 1970. The addresses
    are known once `ready`. `scratch` is Ray's folder, removed at the end. `cluster` is Ray's address, and `own` whether
    it was started with the mesh. `security` says in words what is encrypted and who may ask.
    """

    model_config = ConfigDict(frozen=True)

    mesh: str
    run: str
    pid: int
    since: float
    scratch: Path
    log: Path
    own: bool = True
    cluster: str = ""
    ready: bool = False
    grpc: str = ""
    http: str = ""
    dashboard: str = ""
    security: str = ""


class StateFolder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "mesh.log"
        self.token = root / "ray-token"
        self._lock = root / "lock"
        self._record = root / "running.json"
        self._incarnation = root / "incarnation"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock that one supervisor has; raises `StartError` telling of the mesh that holds it."""
        with self._opened_lock() as descriptor:
            if not _try_lock(descriptor):
                raise StartError(self._running_already())
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            yield

    def holder(self) -> int | None:
        """The pid of the supervisor that lives, if one does. The kernel lets go of the lock of a dead one."""
        if not self._lock.exists():
            return None
        with self._opened_lock() as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(self._lock.read_text() or 0) or None
        return None

    def write(self, record: Record) -> None:
        """Whole or not at all: another process may be reading."""
        fresh = self._record.with_suffix(".new")
        fresh.write_text(record.model_dump_json(indent=2), encoding="utf-8")
        fresh.replace(self._record)

    def read(self) -> Record | None:
        """The record that is there, of a living mesh or not; None when there is none, or it is damaged."""
        try:
            return Record.model_validate_json(self._record.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def forget(self) -> None:
        self._record.unlink(missing_ok=True)

    def next_incarnation(self) -> int:
        """A greater number at every call, over all supervisors of this mesh: orders its controllers. Under the lock."""
        try:
            number = int(self._incarnation.read_text()) + 1
        except FileNotFoundError:
            number = 1
        except ValueError as error:
            raise StartError(f"mesh.state: {self._incarnation} holds no number") from error
        fresh = self._incarnation.with_suffix(".new")
        fresh.write_text(f"{number}\n")
        fresh.replace(self._incarnation)
        return number

    @contextmanager
    def _opened_lock(self) -> Iterator[int]:
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"mesh.state: {error.filename or self._lock}: {error.strerror}") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _running_already(self) -> str:
        record = self.read()
        if record is None:
            return f"a mesh with its state in {self.root} is starting or stopping"
        return f"a mesh named {record.mesh} is running already: {describe(record)}"


def _try_lock(descriptor: int) -> bool:
    for _ in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_TRY_S)  # somebody may only be looking whether it is held
        else:
            return True
    return False


def describe(record: Record) -> str:
    """The mesh of a record in one line."""
    since = datetime.fromtimestamp(record.since, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    where = f"gRPC {record.grpc}, HTTP {record.http}" if record.ready else "not ready yet"
    return f"pid {record.pid}, since {since}, {where}"
