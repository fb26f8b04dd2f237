"""The page ids of prompts, for those who look for pages; computed once for what prompts have in common."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.domain.pages import ROOT, page_id
from runtime.ids import PageId, TenantId
from runtime.router.index import Names

_BLOCK_PAGES = 16
_KEPT = 1 << 16
_Key = tuple[TenantId, PageId, int, int]


class Chains:
    """`tenants` are their secrets. Blocks of a prompt are known again by a hash of their tokens: two that share one
    would only be looked for in the wrong place, and only of one tenant."""

    def __init__(self, tenants: Mapping[TenantId, bytes], page_tokens: int, fingerprint: str) -> None:
        self._tenants = tenants
        self._page_tokens = page_tokens
        self._fingerprint = fingerprint
        self._blocks: OrderedDict[_Key, tuple[bytes, PageId]] = OrderedDict()

    def names(self, tenant: TenantId, tokens: Sequence[int]) -> Names | None:
        """Of the full pages of a prompt; None for a tenant whose secret is not known here."""
        salt = self._tenants.get(tenant)
        if salt is None:
            return None
        size = self._page_tokens
        block = size * _BLOCK_PAGES
        full = len(tokens) // size * size
        parent, told = ROOT, list[bytes]()
        for start in range(0, full, block):
            piece = tuple(tokens[start : min(start + block, full)])
            key = (tenant, parent, hash(piece), len(piece))
            known = self._blocks.get(key)
            if known is None:
                known = self._blocks[key] = self._chain(salt, parent, piece)
                if len(self._blocks) > _KEPT:
                    self._blocks.popitem(last=False)
            else:
                self._blocks.move_to_end(key)
            told.append(known[0])
            parent = known[1]
        return np.frombuffer(b"".join(told), dtype="<u8").astype(np.uint64)

    def _chain(self, salt: bytes, parent: PageId, tokens: tuple[int, ...]) -> tuple[bytes, PageId]:
        size, halves = self._page_tokens, list[bytes]()
        for start in range(0, len(tokens), size):
            parent = page_id(salt, parent, tokens[start : start + size], size, self._fingerprint)
            halves.append(parent[:8])
        return b"".join(halves), parent
