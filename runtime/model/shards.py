"""What a safetensors file says it holds, checked against the file before any of it is used. Never reads tensor data."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import ModelError

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_DTYPE_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "BF16": 16,
    "F16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are: `size` bytes from `offset` of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int


def read_header(file: Path) -> list[StoredTensor]:
    """The tensors of one file. Raises `ModelError` when the header or the file's size does not add up."""
    size = file.stat().st_size
    with file.open("rb") as source:
        length = _header_length(file, size, source.read(_LENGTH_BYTES))
        header = _parse(file, source.read(length))
    data = _LENGTH_BYTES + length
    tensors = [_tensor(file, name, entry, data) for name, entry in header.items() if name != "__metadata__"]
    end = data
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != end:
            raise ModelError(f"{file}: corrupt: tensor {tensor.name} begins at byte {tensor.offset}, expected {end}")
        end += tensor.size
    if size != end:
        kind = "truncated" if size < end else "corrupt"
        raise ModelError(f"{file}: {kind}: it has {size} bytes, its header describes {end}")
    return tensors


def _header_length(file: Path, size: int, raw: bytes) -> int:
    if len(raw) < _LENGTH_BYTES:
        raise ModelError(f"{file}: truncated: {size} bytes are no safetensors file")
    (length,) = struct.unpack("<Q", raw)
    if length > _MAX_HEADER_BYTES:
        raise ModelError(f"{file}: corrupt: a header of {length} bytes, at most {_MAX_HEADER_BYTES} are allowed")
    if _LENGTH_BYTES + length > size:
        raise ModelError(f"{file}: truncated: a header of {length} bytes in a file of {size}")
    return int(length)


def _parse(file: Path, raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise ModelError(f"{file}: corrupt: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{file}: corrupt: its header is not a JSON object")
    return header


def _tensor(file: Path, name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(int(extent) for extent in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
        wanted = math.prod(shape) * _DTYPE_BITS[dtype] // 8
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"{file}: corrupt: the header's entry of tensor {name} is not understood: {error!r}"
        ) from error
    if min(shape, default=0) < 0 or begin < 0 or end - begin != wanted:
        raise ModelError(
            f"{file}: corrupt: tensor {name} of {dtype} {list(shape)} takes {wanted} bytes, has {end - begin}"
        )
    return StoredTensor(name, dtype, shape, file, data + begin, wanted)
