"""What becomes of a page between two workers: at its sender what the ticket asks for, at its receiver what it was.

Whoever has no tensors needs none of this: its pages go and come as they are.
"""

from collections.abc import Callable, Iterable

from runtime.domain.messages import Ticket
from runtime.domain.spec import DTYPE_BYTES, ModelSpec
from runtime.domain.steps import Encoding, Frame
from runtime.kv.parts import split_groups


def packing(spec: ModelSpec, ticket: Ticket) -> Callable[[Frame], Iterable[Frame]]:
    """How pages of this worker are made ready for the way: cut by groups of layers, no wider than the receiver's data
    type, and compressed where it asked for that. The ticket must be one that this worker can serve."""
    narrow = DTYPE_BYTES[spec.dtype] > DTYPE_BYTES[ticket.dtype]
    if ticket.encoding is Encoding.PLAIN and not narrow:
        return lambda frame: split_groups(frame, spec)
    from runtime.kv.encodings import compress, converted  # needs torch

    def pack(frame: Frame) -> Iterable[Frame]:
        for part in split_groups(frame, spec):
            yield compress(converted(part, spec, ticket.dtype) if narrow else part, spec, ticket.encoding)

    return pack


def unpacked(frame: Frame, spec: ModelSpec) -> Frame:
    """A frame as the model computes it. Raises `DataCorrupt` for what cannot be made of it."""
    if frame.encoding is Encoding.PLAIN and frame.dtype is None:
        return frame
    from runtime.kv.encodings import plain  # needs torch

    return plain(frame, spec)
