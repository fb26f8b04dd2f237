"""The other end of a supervisor: starts it, hears its events, detaches from it or has it stop."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import psutil

from actors.events import Event, Failed, Ready, read_events
from actors.state import Record, StateFolder
from runtime.config import Config
from runtime.errors import StartError

Hear = Callable[[Event], None]
_LONGEST_STOP_S = 120.0


class Supervised:
    """A mesh that this process started. `hear` is called for each event, from another thread once the mesh is ready;
    from then on there is a `record`."""

    def __init__(self, config: Config, hear: Hear) -> None:
        self._config = config
        self._hear = hear
        self.record: Record
        self._failure = ""
        self._detached = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "actors.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
            cwd="/",  # where no folder of the user's can be taken for a package of ours
        )
        self._events = self._read()
        self._listener = threading.Thread(target=self._listen, name="events", daemon=True)

    @property
    def lives(self) -> bool:
        """Whether there is something to stop from here."""
        return not self._detached and self._process.poll() is None

    def wait_ready(self) -> None:
        """Returns once the mesh serves; raises `StartError` with what the supervisor says."""
        assert self._process.stdin is not None
        self._order(self._config.model_dump_json())
        for event in self._events:
            if isinstance(event, Ready):
                self.record = event.record
                self._listener.start()
                return
        self._process.wait()
        raise StartError(self._failure or self._died())

    def wait_ended(self) -> None:
        """Returns when the mesh was stopped, by whomever; raises `StartError` when it ended otherwise."""
        self._listener.join()
        if self._process.wait() != 0:
            raise StartError(self._failure or self._died())

    def detach(self) -> None:
        """Let the mesh outlive this process; it cannot be stopped from here any more."""
        self._order("detach")
        self._detached = True

    def stop(self) -> None:
        """Have the mesh drained and cleared away, and wait for that; once more to have it done without draining."""
        if self.lives:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it is dead, which its events tell

    def _read(self) -> Iterator[Event]:
        assert self._process.stdout is not None
        for event in read_events(self._process.stdout):
            if isinstance(event, Failed):
                self._failure = event.message
            else:
                self._hear(event)
            yield event

    def _listen(self) -> None:
        for _ in self._events:
            pass

    def _died(self) -> str:
        status = self._process.returncode
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"the supervisor {how}; `baton up` or `baton down` clears away what it left"


def stop_mesh(folder: StateFolder) -> None:
    """Have the supervisor of this mesh stop, and wait until it has; ends nothing else. Nothing when none runs."""
    pid = folder.holder()
    if pid is None:
        return
    try:
        supervisor = psutil.Process(pid)
        supervisor.terminate()
        supervisor.wait(timeout=_LONGEST_STOP_S)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        raise StartError(f"the mesh is still draining after {_LONGEST_STOP_S:g} s; ask again to stop at once") from None
