"""Packets over a Unix socket on the event loop: in order, each whole or not at all. Knows no word of what they say.

Such a socket connects processes of one kernel only, and its names in the abstract namespace are no files: nothing is
left of them when a process is killed.
"""

import array
import asyncio
import os
import socket
import struct
from collections import deque
from collections.abc import Callable

from runtime.errors import Unavailable
from runtime.kv.transport.shm.words import MAX_BYTES

_BACKLOG = 1024
_PACKETS_AT_ONCE = 4
MOST_WAITING = 4096
"""Packets that wait for an end that does not read. Honest ones owe each other fewer: one for each slot and transfer."""
_CREDENTIALS = struct.Struct("3i")


class Connection:
    """One end. `on_packet` hears every packet and `on_end` once that no more come: the other end closed it, or died.

    What does not fit into the socket's buffer waits here, in order; both ends bound what they say by what they owe. One
    that asks for more and never reads the answers is not listened to until it has.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._on_packet: Callable[[bytes], None]
        self._on_end: Callable[[], None]
        self._open = True
        self._deaf = False
        sock.setblocking(False)

    def start(self, on_packet: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_packet = on_packet
        self._on_end = on_end
        self._loop.add_reader(self._sock, self._readable)

    def send(self, packet: bytes, descriptor: int | None = None) -> None:
        """Hand a packet over, in order; nothing happens when the connection is over. A descriptor goes at once or
        not at all."""
        if not self._open:
            return
        if self._waiting or not self._try_send(packet, descriptor):
            if not self._waiting:
                self._loop.add_writer(self._sock, self._writable)
            self._waiting.append(packet)

    async def receive_descriptor(self) -> tuple[bytes, int | None]:
        """The next packet, with the descriptor that came along; before `start` only. `Unavailable` at the end."""
        readable = asyncio.Event()
        self._loop.add_reader(self._sock, readable.set)
        try:
            await readable.wait()
            packet, descriptors, *_ = socket.recv_fds(self._sock, MAX_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"the socket broke: {error.strerror}") from error
        finally:
            self._loop.remove_reader(self._sock)
        if not packet:
            raise Unavailable("the other end closed the socket")
        return packet, descriptors[0] if descriptors else None

    def close(self) -> None:
        """End it here. `on_end` is not told."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            self._sock.close()

    def _readable(self) -> None:
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = self._sock.recv(MAX_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self.close()
                self._on_end()
                return
            self._on_packet(packet)
            if self._open and len(self._waiting) >= MOST_WAITING:
                self._deaf = True
                self._loop.remove_reader(self._sock)
            if not self._open or self._deaf:
                return

    def _writable(self) -> None:
        while self._waiting:
            if not self._try_send(self._waiting[0], None):
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._sock)
        if self._deaf:
            self._deaf = False
            self._loop.add_reader(self._sock, self._readable)

    def _try_send(self, packet: bytes, descriptor: int | None) -> bool:
        """False when the buffer is full. That the other end is gone is told by reading."""
        try:
            if descriptor is None:
                self._sock.send(packet)
            else:
                rights = array.array("i", [descriptor])
                self._sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True


class Listener:
    """Accepts connections to an abstract name, from processes of this user."""

    def __init__(self, name: str, on_connection: Callable[[Connection], None]) -> None:
        """Raises `Unavailable` when this system has no such sockets."""
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        try:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._sock.bind(f"\0{name}")
            self._sock.listen(_BACKLOG)
        except OSError as error:
            raise Unavailable(f"no Unix socket can be listened on: {error.strerror}") from error
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._acceptable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _acceptable(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        if _is_ours(sock):
            self._on_connection(Connection(sock))
        else:
            sock.close()


def connect(name: str) -> Connection:
    """Raises `Unavailable` when nobody of this user listens to that name on this host."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)
        sock.connect(f"\0{name}")
    except OSError as error:
        sock.close()
        raise Unavailable("its socket is not on this host, or not in this network namespace") from error
    if not _is_ours(sock):
        sock.close()
        raise Unavailable("its process is of another user")
    return Connection(sock)


def _is_ours(sock: socket.socket) -> bool:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())
