"""The pool's keys and values in the memory of an accelerator: pages cross by way of memory that it reaches itself."""

from collections.abc import Iterable

import numpy as np
import torch

from runtime.engine.kv_tensors import KVTensors


class DeviceKV(KVTensors):
    """All that is asked of it is ordered with what runs on the device's current stream."""

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        """The payload of each page and number of tokens, gathered there and copied at once."""
        wanted = tuple(pages)
        if not wanted:
            return []
        numbers = torch.tensor([page for page, _ in wanted], device=self.device)
        gathered = self._pool.index_select(2, numbers)
        host = self._host(gathered.shape)
        host.copy_(gathered)
        raw = host.view(torch.uint8).numpy()
        return [raw[:, :, place, :tokens].tobytes() for place, (_, tokens) in enumerate(wanted)]

    def read_page(self, page: int, tokens: int) -> bytes:
        (payload,) = self.read_pages([(page, tokens)])
        return payload

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        """The copy is on its way when this returns: pinned memory is not given out again before it has left."""
        layers, halves, _, *shape = self._pool.shape
        host = self._host((layers, halves, *shape))
        raw = host.view(torch.uint8).numpy()
        target = raw[:, :, :tokens]
        target[...] = np.frombuffer(payload, np.uint8).reshape(target.shape)
        raw[:, :, tokens:] = 0
        self._pool[:, :, page].copy_(host, non_blocking=True)

    def _host(self, shape: Iterable[int]) -> torch.Tensor:
        return torch.empty(tuple(shape), dtype=self.dtype, pin_memory=self.device.type == "cuda")
