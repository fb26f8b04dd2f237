"""What the two ends of shared memory say to each other, one word a packet. Between processes of one host and build.

A writer numbers its transfers (`handle`) as it opens them; what is said of a transfer carries that number.
"""

import struct
from dataclasses import dataclass, fields
from typing import ClassVar

from runtime.errors import InvalidArgument

VERSION = 1
MAX_BYTES = 4096
_MAX_TEXT = 1024


@dataclass(frozen=True, slots=True)
class Hello:
    """Writer, first: what it speaks, and which model's frames it is going to write, of how many bytes at most."""

    form: ClassVar[str] = "<H16sI"
    version: int
    fingerprint: bytes
    frame_bytes: int


@dataclass(frozen=True, slots=True)
class Arena:
    """Receiver, the answer to `Hello`; the memory comes with it as a file descriptor."""

    form: ClassVar[str] = "<II"
    slots: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class Declined:
    """Receiver, instead of `Arena`: there will be no shared memory between the two."""

    form: ClassVar[str] = "<"
    reason: str


@dataclass(frozen=True, slots=True)
class Open:
    """Writer: begin a transfer."""

    form: ClassVar[str] = "<II"
    handle: int
    epoch: int
    transfer: str


@dataclass(frozen=True, slots=True)
class Granted:
    """Receiver: these slots may be written from now on."""

    form: ClassVar[str] = "<I"
    handle: int
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Receiver: there is no such transfer, or no more. The writer has nothing in flight and forgets it."""

    form: ClassVar[str] = "<I"
    handle: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Receiver: no slot is free for this transfer; another path has to do."""

    form: ClassVar[str] = "<I"
    handle: int
    reason: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Writer: a frame of `length` bytes is in a slot."""

    form: ClassVar[str] = "<III"
    handle: int
    slot: int
    length: int


@dataclass(frozen=True, slots=True)
class Taken:
    """Receiver: the frame was copied out, and the slot may be written again."""

    form: ClassVar[str] = "<II"
    handle: int
    slot: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Writer: it wrote `frames` frames, all of them taken, and writes no more."""

    form: ClassVar[str] = "<II"
    handle: int
    frames: int


@dataclass(frozen=True, slots=True)
class Committed:
    """Receiver: the transfer is over."""

    form: ClassVar[str] = "<I"
    handle: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Receiver: write no more of a transfer, and say so."""

    form: ClassVar[str] = "<I"
    handle: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """Writer, to `Stop` or because it gave up: nothing of the transfer is being written or will be."""

    form: ClassVar[str] = "<I"
    handle: int


Word = Hello | Arena | Declined | Open | Granted | Refused | NoRoom | Placed | Taken | Commit | Committed | Stop | Quiet
_KINDS: tuple[type[Word], ...] = (
    Hello, Arena, Declined, Open, Granted, Refused, NoRoom, Placed, Taken, Commit, Committed, Stop, Quiet,
)  # fmt: skip
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_FORMS = {kind: struct.Struct("<B" + kind.form[1:]) for kind in _KINDS}
_NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in _KINDS}
_WITH_TEXT = (Declined, Open, Refused, NoRoom)


def pack(word: Word) -> bytes:
    kind = type(word)
    if isinstance(word, Granted):
        return _FORMS[kind].pack(_CODES[kind], word.handle) + struct.pack(f"<{len(word.slots)}I", *word.slots)
    values = [getattr(word, name) for name in _NAMES[kind]]
    if isinstance(word, _WITH_TEXT):
        return _FORMS[kind].pack(_CODES[kind], *values[:-1]) + str(values[-1]).encode()[:_MAX_TEXT]
    return _FORMS[kind].pack(_CODES[kind], *values)


def unpack(packet: bytes) -> Word:
    """Raises `InvalidArgument` for what is no word."""
    if not packet or packet[0] >= len(_KINDS):
        raise InvalidArgument("the packet is of no known kind", field="packet")
    kind = _KINDS[packet[0]]
    form = _FORMS[kind]
    try:
        _, *values = form.unpack_from(packet)
        rest = packet[form.size :]
        if kind is Granted:
            values.append(struct.unpack(f"<{len(rest) // 4}I", rest))
        elif kind in _WITH_TEXT:
            values.append(rest.decode())
        elif rest:
            raise InvalidArgument(f"the packet has {len(rest)} bytes too many", field="packet")
    except (struct.error, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the packet is malformed: {error}", field="packet") from error
    return kind(*values)
