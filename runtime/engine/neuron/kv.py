"""The pool's keys and values on the device, and how whole pages leave it and enter it in the canonical layout."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from runtime.domain.spec import ModelSpec
from runtime.engine.kv_tensors import DTYPES
from runtime.engine.neuron.attention import PoolTensors
from runtime.engine.neuron.device import Device


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages that follow each other in the pool: the first one's number, and how many tokens of each are wanted."""

    first: int
    tokens: tuple[int, ...]


class NeuronKV:
    """`pages` pages and one more, number 0, that is nobody's. `copies` says how often each head is held: a rank of
    more shards than there are heads holds one that others hold too; a page leaves with each head once."""

    def __init__(self, spec: ModelSpec, pages: int, device: Device, copies: int = 1) -> None:
        self._spec = spec
        self._device = device
        self._dtype = DTYPES[spec.dtype]
        shape = ((pages + 1) * spec.page_tokens, spec.kv_heads * copies, spec.head_dim)

        def flat() -> list[torch.Tensor]:
            return [torch.zeros(shape, dtype=self._dtype, device=device.name) for _ in range(spec.layers)]

        self.tensors = PoolTensors(flat(), flat(), spec.page_tokens, copies)

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        """One copy for each layer's keys, and for its values, of every run of pages that lie beside each other."""
        payloads: list[bytes] = []
        self._device.synchronize()
        arrivals = [(run, self._fetch(run)) for run in _runs(pages)]
        self._device.synchronize()
        for run, host in arrivals:
            content = host.view(torch.uint8).numpy()
            payloads += [content[:, :, place, :tokens].tobytes() for place, tokens in enumerate(run.tokens)]
        return payloads

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        """Only whole pages are written, so that a device sees one shape; the page's other tokens become zero."""
        spec = self._spec
        host = torch.zeros(spec.layers, 2, spec.page_tokens, spec.kv_heads, spec.head_dim, dtype=self._dtype)
        target = host.view(torch.uint8).numpy()[:, :, :tokens]
        target[...] = np.frombuffer(payload, np.uint8).reshape(target.shape)
        host = host.repeat_interleave(self.tensors.copies, 3)
        self._device.synchronize()
        for tensors, source in self._sides(host):
            for flat, part in zip(tensors, source, strict=True):
                flat[self._slots(page, 1)].copy_(part, non_blocking=True)
        self._device.synchronize()

    def _fetch(self, run: _Run) -> torch.Tensor:
        """`[layer, k|v, page, token, kv_head, head_dim]` on the host, once the device has been waited for."""
        spec, count = self._spec, len(run.tokens)
        host = torch.empty(spec.layers, 2, count, spec.page_tokens, spec.kv_heads, spec.head_dim, dtype=self._dtype)
        slots = self._slots(run.first, count)
        for tensors, target in self._sides(host):
            for flat, part in zip(tensors, target, strict=True):
                part.flatten(0, 1).copy_(flat[slots, :: self.tensors.copies], non_blocking=True)
        return host

    def _sides(self, host: torch.Tensor) -> Iterator[tuple[Iterable[torch.Tensor], torch.Tensor]]:
        """The keys and then the values: the tensors of all layers, and what is theirs of a tensor on the host."""
        yield self.tensors.keys, host[:, 0]
        yield self.tensors.values, host[:, 1]

    def _slots(self, page: int, count: int) -> slice:
        size = self._spec.page_tokens
        return slice((page + 1) * size, (page + 1 + count) * size)


def _runs(pages: Iterable[tuple[int, int]]) -> Iterator[_Run]:
    first, wanted = 0, list[int]()
    for page, tokens in pages:
        if wanted and page != first + len(wanted):
            yield _Run(first, tuple(wanted))
            wanted = []
        if not wanted:
            first = page
        wanted.append(tokens)
    if wanted:
        yield _Run(first, tuple(wanted))
