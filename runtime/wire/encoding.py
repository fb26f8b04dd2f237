"""Protobuf's own encoding, read without copying. For what generated code cannot do: views into large messages, and
saying which field of a message that does not parse is at fault."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from runtime.errors import InvalidArgument

_BYTES = 2
_MAX_VARINT_BYTES = 10


def read_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message: a number, or a view of what a field of bytes, text or a message holds.

    Raises `InvalidArgument` when `data` is not a message.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        value: int | memoryview
        match tag & 7:
            case 0:
                value, position = _varint(data, position)
            case 1:
                value, position = _view(data, position, 8)
            case 2:
                length, position = _varint(data, position)
                value, position = _view(data, position, length)
            case 5:
                value, position = _view(data, position, 4)
            case kind:
                raise InvalidArgument(f"the message has a field of unknown kind {kind}", field="message")
        yield tag >> 3, value


def bytes_field_head(number: int, length: int) -> bytes:
    """What precedes `length` bytes of field `number`."""
    return _pack_varint(number << 3 | _BYTES) + _pack_varint(length)


def unreadable_text(data: memoryview, kind: Descriptor, path: str = "") -> str | None:
    """The path of the first text field in a message of `kind` that is not UTF-8, or None.

    Raises `InvalidArgument` when `data` is not a message at all.
    """
    for number, value in read_fields(data):
        field = kind.fields_by_number.get(number)
        if field is None or isinstance(value, int):
            continue
        here = f"{path}{field.name}"
        if field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(value):
            return here
        if field.message_type is not None and (found := unreadable_text(value, field.message_type, f"{here}.")):
            return found
    return None


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, position + place + 1
    raise InvalidArgument("the message is cut off within a number", field="message")


def _view(data: memoryview, position: int, length: int) -> tuple[memoryview, int]:
    end = position + length
    if end > len(data):
        raise InvalidArgument(
            f"the message is cut off: a field has {length} bytes, {len(data) - position} are left", field="message"
        )
    return data[position:end], end


def _pack_varint(value: int) -> bytes:
    packed = bytearray()
    while value > 0x7F:
        packed.append(value & 0x7F | 0x80)
        value >>= 7
    packed.append(value)
    return bytes(packed)


def _is_utf8(text: memoryview) -> bool:
    try:
        str(text, "utf-8")
    except UnicodeDecodeError:
        return False
    return True
