"""Runs a model as static graphs, one launch for every piece of a chunk. Owns the warmed graphs and the device's queue.

Prefill is what it is made for; a token that decodes is a chunk of one, and runs through the same buckets.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit

from runtime.domain.steps import Chunk
from runtime.engine.neuron.buckets import Bucket, Buckets, Piece
from runtime.engine.neuron.device import Device, Launch
from runtime.engine.neuron.forward import Forward, plan_of
from runtime.engine.neuron.kv import NeuronKV
from runtime.engine.neuron.preflight import meaning
from runtime.errors import EngineFailed, SetupError, StartError

# The device takes 63 launches ahead of their end.
_IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class Warmed:
    """A bucket that is ready: number `number` of `total`, after `seconds` of compiling, or of looking it up."""

    bucket: Bucket
    number: int
    total: int
    seconds: float


class NeuronRunner:
    """The tensors of `forward` live on `device`. `warm` comes before all else."""

    def __init__(self, forward: Forward, kv: NeuronKV, buckets: Buckets, device: Device) -> None:
        self.kv = kv
        self._forward = forward
        self._buckets = buckets
        self._device = device
        self._vocab: int = forward.model.config.get_text_config().vocab_size
        self._launches: dict[Bucket, Launch] = {}

    @torch.no_grad()
    def warm(self, progress: Callable[[Warmed], None]) -> None:
        """Compile every bucket and run it once, on nobody's page. Raises `SetupError` by the name of the bucket."""
        total = len(self._buckets.all)
        for number, bucket in enumerate(self._buckets.all, 1):
            began = time.monotonic()
            launch = self._device.compile(partial(self._forward, bucket))
            with _blaming(bucket):
                launch(plan_of(Piece(bucket, (0,), 0, (-1,)), self._buckets.page_tokens).to(self._device.name))
                self._device.synchronize()
            self._launches[bucket] = launch
            progress(Warmed(bucket, number, total, time.monotonic() - began))

    @torch.no_grad()
    def forward(self, chunks: tuple[Chunk, ...]) -> torch.Tensor:
        """Write the chunks' KV; the logits `[n, vocab]` in float32 of the last token of each that samples, in order.

        Raises `EngineFailed` by the name of a bucket that was not warmed.
        """
        pieces = [(piece, chunk) for chunk in chunks for piece in self._buckets.pieces(chunk)]
        wanted: list[torch.Tensor] = []
        for first in range(0, len(pieces), _IN_FLIGHT):
            batch = pieces[first : first + _IN_FLIGHT]
            # A copy from the host waits for no launch that came before it: all numbers first, then all launches.
            self._device.synchronize()
            plans = [plan_of(piece, self._buckets.page_tokens).to(self._device.name) for piece, _ in batch]
            for (piece, chunk), plan in zip(batch, plans, strict=True):
                logits = self._launch(piece.bucket, plan)
                if chunk.sample and piece.start + len(piece.tokens) == chunk.start + len(chunk.tokens):
                    wanted.append(logits)
        return self._to_host(wanted)

    def _launch(self, bucket: Bucket, plan: torch.Tensor) -> torch.Tensor:
        launch = self._launches.get(bucket)
        if launch is None:
            raise EngineFailed(f"bucket {bucket} was not warmed; warmed are: {', '.join(map(str, self._launches))}")
        try:
            return launch(plan)
        except FailOnRecompileLimitHit as error:
            raise EngineFailed(f"bucket {bucket} does not fit the graph that was warmed for it: {error}") from error

    def _to_host(self, rows: list[torch.Tensor]) -> torch.Tensor:
        host = torch.empty(len(rows), self._vocab)
        for target, row in zip(host, rows, strict=True):
            target.copy_(row, non_blocking=True)
        if rows:
            self._device.synchronize()
        return host


@contextmanager
def _blaming(bucket: Bucket) -> Iterator[None]:
    """What compilers and drivers raise, in words for the person who starts a worker."""
    try:
        yield
    except RuntimeError as error:
        cause = _innermost(error)
        if isinstance(cause, SetupError):
            raise type(cause)(f"bucket {bucket}: {cause}") from error
        told = meaning(cause) or f"{type(cause).__name__}: {cause}"
        raise StartError(f"device neuron: bucket {bucket}: {told}") from error


def _innermost(error: BaseException) -> BaseException:
    while (inner := getattr(error, "inner_exception", None) or error.__cause__) is not None:
        error = inner
    return error
