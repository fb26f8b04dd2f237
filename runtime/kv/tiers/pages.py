"""A whole page as tiers keep it: a frame of each group of the model's layers, one right after the other."""

from runtime.domain.spec import DTYPE_BYTES, ModelSpec
from runtime.domain.steps import Frame
from runtime.errors import DataCorrupt
from runtime.kv.frames import HEADER_BYTES, FrameCodec
from runtime.kv.parts import Joined, split_groups


class PageCodec:
    """Full pages of one model, plain, all of `page_bytes`."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._frames = FrameCodec(spec)
        width = DTYPE_BYTES[spec.dtype] * spec.page_tokens
        self._sizes = [HEADER_BYTES + group.elements * width for group in spec.page_groups]
        self.page_bytes = sum(self._sizes)

    def encode(self, page: Frame) -> bytes:
        return b"".join(self._frames.encode(part) for part in split_groups(page, self.spec))

    def place(self, page: Frame, target: memoryview) -> None:
        """Write a page to where `target` begins, its payload copied once."""
        first = 0
        for part in split_groups(page, self.spec):
            first += self._frames.place(part, target[first:])

    def decode(self, data: bytes) -> Frame:
        """Raises `DataCorrupt` naming what is not as it was, or not a full page of this model."""
        if len(data) != self.page_bytes:
            raise DataCorrupt(f"a page has {self.page_bytes} bytes, here are {len(data)}", field="page_bytes")
        joined, first, page = Joined(self.spec, 1), 0, None
        for size in self._sizes:
            page = joined.add(self._frames.decode(memoryview(data)[first : first + size]))
            first += size
        if page is None or page.valid_tokens != self.spec.page_tokens:
            raise DataCorrupt("the frames are not those of one full page", field="page")
        return page
