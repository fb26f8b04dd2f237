"""KV pages as bytes: header and checksum around the canonical payload. Owns the layout that FRAME.md documents.

Never trusts a length that a frame claims, and never looks into the payload.
"""

import struct
from collections.abc import Iterable

from xxhash import xxh3_64

from runtime.domain.spec import DTYPE_BYTES, Kind, LayerGroup, ModelSpec
from runtime.domain.steps import Encoding, Frame, Part
from runtime.errors import DataCorrupt
from runtime.ids import PageId

MAGIC = b"BKVF"
VERSION = 1
_FIELDS = struct.Struct("<4sHH16s16sIIHHHHBBBBI")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_DTYPES = {"float32": 1, "bfloat16": 2, "float16": 3}
_DTYPE_NAMES = {number: name for name, number in _DTYPES.items()}
_KINDS = {Kind.KV: 0, Kind.LATENT: 1}
SCALE_BYTES = 4
_ENCODINGS = {Encoding.PLAIN: 0, Encoding.FP8: 1, Encoding.INT8: 2, Encoding.FP8_448: 3}
# What whoever takes one can take too.
_TAKEN_WITH = {Encoding.FP8_448: (Encoding.PLAIN, Encoding.FP8)}


class FrameCodec:
    """Frames of one model: of whole pages, or of parts of them.

    A lossy frame never stands for a lossless one: `encoding` is what this worker asked for, and takes beside plain.
    Elements are of the spec's dtype or of one of `dtypes`; of those no wider one is taken, so that no frame is larger
    than `max_bytes`.
    """

    def __init__(self, spec: ModelSpec, encoding: Encoding = Encoding.PLAIN, dtypes: Iterable[str] = ()) -> None:
        self.spec = spec
        self.fingerprint = bytes.fromhex(spec.kv_fingerprint)
        self._groups = spec.page_groups
        taken = (*_TAKEN_WITH.get(encoding, (Encoding.PLAIN,)), encoding)
        self._encodings = {_ENCODINGS[each]: each for each in taken}
        own = DTYPE_BYTES[spec.dtype]
        self._dtypes = {_DTYPES[each] for each in (spec.dtype, *dtypes) if DTYPE_BYTES[each] <= own}
        self.max_bytes = HEADER_BYTES + max(
            encoded_bytes(group, group.heads, spec.page_tokens, spec.dtype, each)
            for group in self._groups
            for each in Encoding
        )

    def header(self, frame: Frame) -> bytes:
        """The header of `frame`, which its payload follows; for those who can send two buffers without joining them."""
        part, dtype = frame.part or self._whole(), frame.dtype or self.spec.dtype
        group = self._groups[part.group]
        assert len(frame.payload) == encoded_bytes(group, part.heads, frame.valid_tokens, dtype, frame.encoding)
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            HEADER_BYTES,
            self.fingerprint,
            frame.page,
            frame.index,
            frame.valid_tokens,
            part.group,
            len(self._groups),
            part.first_head,
            part.heads,
            _DTYPES[dtype],
            _ENCODINGS[frame.encoding],
            _KINDS[group.kind],
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
        magic, version, header_bytes, fingerprint, page, index, tokens, *shape, reserved, size = fields
        payload = view[HEADER_BYTES:]
        for name, got, expected in (
            ("magic", magic, MAGIC),
            ("version", version, VERSION),
            ("header_bytes", header_bytes, HEADER_BYTES),
            ("payload_bytes", size, len(payload)),
            ("checksum", _CHECKSUM.unpack_from(view, _FIELDS.size)[0], self.digest(view[: _FIELDS.size], payload)),
            ("fingerprint", fingerprint, self.fingerprint),
            ("reserved", reserved, 0),
        ):
            if got != expected:
                raise _bad(name, got, expected)
        if not 1 <= tokens <= self.spec.page_tokens:
            raise _bad("valid_tokens", tokens, f"1 to {self.spec.page_tokens}")
        part, dtype, encoding = self._read_shape(shape)
        expected_size = encoded_bytes(self._groups[part.group], part.heads, tokens, dtype, encoding)
        if size != expected_size:
            raise _bad("payload_bytes", size, expected_size)
        whole = len(self._groups) == 1 and part == self._whole()
        other = None if dtype == self.spec.dtype else dtype
        return Frame(PageId(page), index, tokens, payload, encoding, None if whole else part, other)

    def digest(self, fields: bytes | memoryview, payload: bytes | memoryview) -> int:
        """The checksum of a frame."""
        digest = xxh3_64(fields)
        digest.update(payload)
        return digest.intdigest()

    def _read_shape(self, shape: Iterable[int]) -> tuple[Part, str, Encoding]:
        number, groups, first_head, heads, dtype, encoding, kind = shape
        if groups != len(self._groups):
            raise _bad("layer_groups", groups, len(self._groups))
        if number >= groups:
            raise _bad("layer_group", number, f"less than {groups}")
        group = self._groups[number]
        if kind != _KINDS[group.kind]:
            raise _bad("kind", kind, _KINDS[group.kind])
        if first_head >= group.heads:
            raise _bad("first_head", first_head, f"less than {group.heads}")
        if not 1 <= heads <= group.heads - first_head:
            raise _bad("heads", heads, f"1 to {group.heads - first_head}")
        if dtype not in self._dtypes:
            raise _bad("dtype", dtype, " or ".join(map(str, sorted(self._dtypes))))
        if encoding not in self._encodings:
            raise _bad("encoding", encoding, " or ".join(map(str, self._encodings)))
        return Part(number, first_head, heads), _DTYPE_NAMES[dtype], self._encodings[encoding]

    def _whole(self) -> Part:
        """The part that is a whole page."""
        assert len(self._groups) == 1, "a page of several groups travels as a frame of each"
        return Part(0, 0, self._groups[0].heads)


def encoded_bytes(group: LayerGroup, heads: int, tokens: int, dtype: str, encoding: Encoding) -> int:
    """Bytes of payload of so many heads and tokens: plain, or a scale for each head and a byte for each element."""
    if encoding is Encoding.PLAIN:
        return group.rows * tokens * heads * group.head_dim * DTYPE_BYTES[dtype]
    return group.rows * heads * (SCALE_BYTES + tokens * group.head_dim)


def _bad(name: str, got: object, expected: object) -> DataCorrupt:
    shown = got.hex() if isinstance(got, bytes) else got
    wanted = expected.hex() if isinstance(expected, bytes) else expected
    return DataCorrupt(f"frame: {name} is {shown}, expected {wanted}", field=name)
