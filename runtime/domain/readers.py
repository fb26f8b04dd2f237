"""Who has used the pages that tiers keep, so that what only an erased session has used can be found and dropped."""

import hashlib
from collections import OrderedDict
from typing import NewType

from runtime.ids import SessionId

Reader = NewType("Reader", str)
"""A session, or `NOBODY`, as it may be written where pages are kept: lower case hexadecimal."""

NOBODY = Reader("0")
"""Requests without a session."""

_TOMBSTONES = 100_000


def reader_of(session: SessionId | None) -> Reader:
    """A digest: whoever lists a store reads no session's id."""
    if session is None:
        return NOBODY
    return Reader(hashlib.blake2b(session.encode(), digest_size=16, person=b"baton reader").hexdigest())


class Buried:
    """Readers of which nothing is taken any more; of very many the newest."""

    def __init__(self) -> None:
        self._readers: OrderedDict[Reader, None] = OrderedDict()

    def add(self, reader: Reader) -> None:
        self._readers[reader] = None
        self._readers.move_to_end(reader)
        if len(self._readers) > _TOMBSTONES:
            self._readers.popitem(last=False)

    def living(self, readers: frozenset[Reader]) -> frozenset[Reader]:
        """Those of them that are not buried."""
        return frozenset(reader for reader in readers if reader not in self._readers)
