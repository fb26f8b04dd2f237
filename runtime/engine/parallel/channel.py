"""What the ranks of a group tell each other beside tensors, and the socket it travels on. Pickled: both ends are ours.

The socket is also what holds a group together: the kernel closes it when either end dies, however it dies.
"""

import pickle
import socket
import struct
from dataclasses import dataclass, field

from runtime.domain.steps import Chunk

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Loaded:
    """This rank has its part of the weights, after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Join:
    """All ranks have their weights: meet the others."""


@dataclass(frozen=True, slots=True)
class Joined:
    """This rank can run steps."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last that a rank tells. `setup`: a person must mend something. `apart`: only because another rank is gone."""

    reason: str
    setup: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """Send of each page and number of tokens this rank's heads, as one list of payloads."""

    pages: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Write:
    """This rank's heads of a page."""

    page: int
    tokens: int
    payload: bytes = field(repr=False)


class Gone(Exception):
    """The other end is closed, or takes or brings nothing in time."""


class Channel:
    """One end; methods raise `Gone`, also when the other end is there and nothing moves for `deadline_s`."""

    def __init__(self, connected: socket.socket, deadline_s: float | None = None) -> None:
        self._socket = connected
        self._deadline_s = deadline_s

    def send(self, message: object) -> None:
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.settimeout(self._deadline_s)
        try:
            self._socket.sendall(_LENGTH.pack(len(content)))
            self._socket.sendall(content)
        except OSError as error:
            raise Gone(f"it takes nothing: {error}") from error

    def receive(self, *, patient: bool = False) -> object:
        """`patient`: however long it takes."""
        self._socket.settimeout(None if patient else self._deadline_s)
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytearray:
        content = bytearray(count)
        view = memoryview(content)
        while view:
            try:
                received = self._socket.recv_into(view)
            except OSError as error:
                raise Gone(f"it brings nothing: {error}") from error
            if not received:
                raise Gone("it has closed its end")
            view = view[received:]
        return content
