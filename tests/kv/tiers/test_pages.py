"""Whole pages as bytes, of models whose layers are alike and of those whose are not."""

from dataclasses import replace

import pytest

from runtime.domain.spec import Kind, LayerGroup
from runtime.errors import DataCorrupt
from runtime.kv.tiers.pages import PageCodec
from tests.kv.tiers.pages import CODEC, SPEC, frame, payload

UNLIKE = replace(SPEC, groups=(LayerGroup((0,), 2, 4), LayerGroup((1,), 1, 8, Kind.LATENT)))
CODECS = [CODEC, PageCodec(UNLIKE)]


@pytest.mark.parametrize("codec", CODECS)
def test_a_page_is_what_it_was(codec: PageCodec) -> None:
    page = replace(frame(3), payload=payload(3)[: codec.spec.page_bytes])
    data = codec.encode(page)
    placed = bytearray(codec.page_bytes)
    codec.place(page, memoryview(placed))
    assert bytes(placed) == data
    read = codec.decode(data)
    assert (read.page, read.index, read.valid_tokens, read.part) == (page.page, 3, SPEC.page_tokens, None)
    assert bytes(read.payload) == page.payload


@pytest.mark.parametrize("codec", CODECS)
def test_no_byte_of_it_may_be_another_or_missing(codec: PageCodec) -> None:
    data = codec.encode(replace(frame(3), payload=payload(3)[: codec.spec.page_bytes]))
    for place in range(0, len(data), 7):
        with pytest.raises(DataCorrupt):
            codec.decode(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(DataCorrupt):
        codec.decode(data[:-1])
