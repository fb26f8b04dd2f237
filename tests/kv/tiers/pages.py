"""Pages of a small model, as tiers take them."""

import hashlib

from runtime.domain.pages import ROOT
from runtime.domain.readers import NOBODY, Reader, reader_of
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Frame
from runtime.domain.tiers import Wanted
from runtime.ids import PageId, SessionId
from runtime.kv.tiers.pages import PageCodec
from runtime.kv.tiers.sealing import SEAL_BYTES

SPEC = ModelSpec("small", 2, 2, 4, "float32", 64, 4096, 8, "00112233445566778899aabbccddeeff", "aa" * 16)
CODEC = PageCodec(SPEC)
PUBLIC = frozenset({NOBODY})
SALT, OTHER_SALT = b"one tenant's secret", b"another tenant's"
SEALED_BYTES = CODEC.page_bytes + SEAL_BYTES


def ident(number: int) -> PageId:
    return PageId(hashlib.blake2b(number.to_bytes(4, "big"), digest_size=16).digest())


def payload(number: int) -> bytes:
    return hashlib.shake_128(number.to_bytes(4, "big")).digest(SPEC.page_bytes)


def frame(number: int) -> Frame:
    return Frame(ident(number), number, SPEC.page_tokens, payload(number))


def chain(count: int) -> list[PageId]:
    return [ident(number) for number in range(count)]


def parent(number: int) -> PageId:
    return ident(number - 1) if number else ROOT


def reader(session: str) -> Reader:
    return reader_of(SessionId(session))


def wanted(number: int, salt: bytes = SALT, *sessions: str) -> Wanted:
    """Page `number` of the one chain that there is, for these sessions or for nobody's."""
    return Wanted(ident(number), parent(number), number, salt, frozenset(map(reader, sessions)) or PUBLIC)
