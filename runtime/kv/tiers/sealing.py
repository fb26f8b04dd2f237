"""Pages at rest, encrypted so that only their tenant's secret opens them. Keeps no key.

    offset  bytes
    0       4       magic, "BKVS"
    4       12      nonce
    16      n + 16  AES-256-GCM of the page's frames and its tag, which also covers the name that it is stored under

Every page has a key of its own, a keyed hash of its identity with the tenant's secret: so the nonces of one key are
few, however many pages a tenant has.
"""

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runtime.errors import DataCorrupt
from runtime.ids import PageId

MAGIC = b"BKVS"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_PURPOSE = b"baton page seal"
SEAL_BYTES = len(MAGIC) + _NONCE_BYTES + _TAG_BYTES


def seal(content: bytes, page: PageId, name: str, salt: bytes) -> bytes:
    """`content` as it is kept under `name`. `salt` is the tenant's secret."""
    nonce = os.urandom(_NONCE_BYTES)
    return b"".join((MAGIC, nonce, _cipher(page, salt).encrypt(nonce, content, name.encode())))


def unseal(sealed: bytes | memoryview, page: PageId, name: str, salt: bytes) -> bytes:
    """Raises `DataCorrupt` naming `seal` when a byte of it is not as it was, or it is of another page or tenant."""
    view = memoryview(sealed)
    if len(view) < SEAL_BYTES or view[: len(MAGIC)] != MAGIC:
        raise DataCorrupt(f"{name} holds {len(view)} bytes that are no sealed page", field="seal")
    content = len(MAGIC) + _NONCE_BYTES
    try:
        return _cipher(page, salt).decrypt(view[len(MAGIC) : content], view[content:], name.encode())
    except InvalidTag:
        raise DataCorrupt(f"{name} was damaged, or sealed by somebody else", field="seal") from None


def _cipher(page: PageId, salt: bytes) -> AESGCM:
    return AESGCM(hashlib.blake2b(page, digest_size=32, key=salt, person=_PURPOSE).digest())
