"""Pages of the step that runs, told layer by layer as their keys and values are written. Never computes any."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from runtime.domain.batched import Ready
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Exported, Frame, Part, StepEvent
from runtime.ids import SequenceId

Completing = Iterable[tuple[SequenceId, tuple[int, ...], list[Ready]]]
"""Sequences with their cuts, and the pages of each that are complete once the step has run."""


class Layerwise(Protocol):
    """A compute that tells as it goes, where what is written can be read at once."""

    def listen(self, written: Callable[[int], None]) -> None:
        """Call this with the number of each layer, rising, once the running step's KV of it is written, on the thread
        that runs it."""

    def read_layers(self, pages: Iterable[tuple[int, int]], layers: range) -> list[bytes]:
        """Of each pool page and number of tokens, the canonical payload of these layers."""


@dataclass(slots=True, eq=False)
class _Going:
    """What of a sequence is on its way: parts up to number `told`."""

    sequence: SequenceId
    cuts: tuple[int, ...]
    ready: list[Ready]
    told: int = 0


class LayerExports:
    """`tell` gets the parts of pages as soon as their layers are written, and says whether it took them; what it did
    not take comes out of `end`."""

    def __init__(self, spec: ModelSpec, compute: Layerwise, tell: Callable[[Sequence[StepEvent]], bool]) -> None:
        self._spec = spec
        self._compute = compute
        self._tell = tell
        self._going: dict[SequenceId, _Going] = {}
        self._kept: list[StepEvent] = []
        compute.listen(self._written)

    def begin(self, completing: Completing) -> None:
        """A step begins that completes these pages."""
        self._going = {sequence: _Going(sequence, cuts, ready) for sequence, cuts, ready in completing}

    def end(self) -> list[StepEvent]:
        """The step ran: the parts that are not told yet."""
        for going in self._going.values():
            while going.told < len(going.cuts):
                self._export(going)
        kept, self._kept = self._kept, []
        return kept

    def told(self, sequence: SequenceId) -> bool:
        """Whether what the step completed of a sequence went out in parts."""
        return sequence in self._going

    def _written(self, layer: int) -> None:
        due = [going for going in self._going.values() if going.told < len(going.cuts)]
        due = [going for going in due if going.cuts[going.told] == layer + 1]
        for going in due:
            self._export(going)
        if due and self._tell(self._kept):
            self._kept = []

    def _export(self, going: _Going) -> None:
        """Its next part."""
        layers = range(going.cuts[going.told - 1] if going.told else 0, going.cuts[going.told])
        part = Part(going.told, 0, self._spec.kv_heads)
        payloads = self._compute.read_layers([(page.page, page.valid_tokens) for page in going.ready], layers)
        for page, payload in zip(going.ready, payloads, strict=True):
            frame = Frame(page.id, page.index, page.valid_tokens, payload, part=part)
            self._kept.append(Exported(going.sequence, frame))
        going.told += 1
