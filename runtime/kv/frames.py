"""KV pages as bytes: header and checksum around the canonical payload. Owns the layout that FRAME.md documents.

Never trusts a length that a frame claims, and never looks into the payload.
"""

import struct

from xxhash import xxh3_64

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Encoding, Frame
from runtime.errors import DataCorrupt
from runtime.ids import PageId

MAGIC = b"BKVF"
VERSION = 1
_FIELDS = struct.Struct("<4sHH16s16sIIHHHHBBHI")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_DTYPES = {"float32": 1, "bfloat16": 2, "float16": 3}
SCALE_BYTES = 4
_ENCODINGS = {Encoding.PLAIN: 0, Encoding.FP8: 1, Encoding.INT8: 2}


class FrameCodec:
    """Frames of one model. The header has room for layer groups and head ranges; there is one group of all heads.

    A lossy frame never stands for a lossless one: `encoding` is what this worker asked for, and takes beside plain.
    """

    def __init__(self, spec: ModelSpec, encoding: Encoding = Encoding.PLAIN) -> None:
        self.spec = spec
        self._taken = {_ENCODINGS[each]: each for each in (Encoding.PLAIN, encoding)}
        self._page_tokens = spec.page_tokens
        self.fingerprint = bytes.fromhex(spec.kv_fingerprint)
        self._shape = (0, 1, 0, spec.kv_heads, _DTYPES[spec.dtype])
        self.max_bytes = HEADER_BYTES + max(encoded_bytes(spec, spec.page_tokens, each) for each in Encoding)

    def header(self, frame: Frame) -> bytes:
        """The header of `frame`, which its payload follows; for those who can send two buffers without joining them."""
        assert len(frame.payload) == encoded_bytes(self.spec, frame.valid_tokens, frame.encoding)
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            self.fingerprint,
            frame.page,
            frame.index,
            frame.valid_tokens,
            *self._shape,
            _ENCODINGS[frame.encoding],
            0,
            len(frame.payload),
        )
        return fields + _CHECKSUM.pack(self.digest(fields, frame.payload))

    def encode(self, frame: Frame) -> bytes:
        return b"".join((self.header(frame), frame.payload))

    def place(self, frame: Frame, target: memoryview) -> int:
        """Write a frame to where `target` begins, its payload copied once; returns the bytes it took."""
        end = HEADER_BYTES + len(frame.payload)
        target[HEADER_BYTES:end] = frame.payload
        target[:HEADER_BYTES] = self.header(frame)
        return end

    def decode(self, data: bytes | memoryview) -> Frame:
        """The one frame that `data` is; its payload stays where it is, so `data` must be nobody else's to write.

        Raises `DataCorrupt` naming the header field (or `checksum`) that is wrong or not this model's.
        """
        view = memoryview(data)
        if len(view) < HEADER_BYTES:
            raise _bad("header_bytes", len(view), f"{HEADER_BYTES} or more")
        fields = _FIELDS.unpack_from(view)
        magic, version, header_bytes, fingerprint, page, index, tokens, *shape, encoding, reserved, size = fields
        payload = view[HEADER_BYTES:]
        for name, got, expected in (
            ("magic", magic, MAGIC),
            ("version", version, VERSION),
            ("header_bytes", header_bytes, HEADER_BYTES),
            ("payload_bytes", size, len(payload)),
            ("checksum", _CHECKSUM.unpack_from(view, _FIELDS.size)[0], self.digest(view[: _FIELDS.size], payload)),
            ("fingerprint", fingerprint, self.fingerprint),
            *zip(_SHAPE_NAMES, shape, self._shape, strict=True),
            ("reserved", reserved, 0),
        ):
            if got != expected:
                raise _bad(name, got, expected)
        if not 1 <= tokens <= self._page_tokens:
            raise _bad("valid_tokens", tokens, f"1 to {self._page_tokens}")
        if encoding not in self._taken:
            raise _bad("encoding", encoding, " or ".join(map(str, self._taken)))
        expected_size = encoded_bytes(self.spec, tokens, self._taken[encoding])
        if size != expected_size:
            raise _bad("payload_bytes", size, expected_size)
        return Frame(PageId(page), index, tokens, payload, self._taken[encoding])

    def digest(self, fields: bytes | memoryview, payload: bytes | memoryview) -> int:
        """The checksum of a frame."""
        digest = xxh3_64(fields)
        digest.update(payload)
        return digest.intdigest()


def encoded_bytes(spec: ModelSpec, tokens: int, encoding: Encoding) -> int:
    """Bytes of payload of so many tokens: plain, or a scale for each head and a byte for each element."""
    if encoding is Encoding.PLAIN:
        return tokens * spec.token_bytes
    return spec.layers * 2 * spec.kv_heads * (SCALE_BYTES + tokens * spec.head_dim)


_SHAPE_NAMES = ("layer_group", "layer_groups", "first_head", "heads", "dtype")


def _bad(name: str, got: object, expected: object) -> DataCorrupt:
    shown = got.hex() if isinstance(got, bytes) else got
    wanted = expected.hex() if isinstance(expected, bytes) else expected
    return DataCorrupt(f"frame: {name} is {shown}, expected {wanted}", field=name)
