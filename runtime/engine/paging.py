"""Where one packed step reads and writes KV: slots, page lists and masks as index tensors. Never touches KV itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from runtime.domain.pages import pages_for
from runtime.domain.steps import Chunk

# Keys and values that decode rows gather together: on a processor so many that they stay in its cache.
CACHE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, eq=False)
class PageList:
    """Pool page numbers `[n]` int64; `first` is the first where they follow each other in the pool, so that their KV
    can be read where it lies."""

    numbers: torch.Tensor
    first: int | None

    @staticmethod
    def of(table: npt.NDArray[np.int64]) -> "PageList":
        consecutive = bool((np.diff(table) == 1).all())
        return PageList(torch.from_numpy(table), int(table[0]) if consecutive else None)


@dataclass(frozen=True, slots=True, eq=False)
class DecodeGroup:
    """Rows of one new token each that attend together, over `tokens` tokens each.

    `rows` are their places in the packed step, ascending; `pages` their block tables, one after the other, the short
    ones padded with the zero page; `lengths` `[n]` how many of the tokens are theirs, the new one included.
    """

    rows: torch.Tensor | slice
    pages: PageList
    lengths: torch.Tensor
    tokens: int

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """What to add to scores: `[n, 1, 1, tokens]`, 0 or minus infinity; None for nothing."""
        if len(self.lengths) == 1 and (window is None or window >= self.tokens):
            return None
        positions = torch.arange(self.tokens, device=self.lengths.device)
        ends = self.lengths[:, None]
        hidden = positions >= ends
        if window is not None:
            hidden |= positions < ends - window
        return _minus_infinity(hidden[:, None, None, :], dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PrefillSpan:
    """Rows `first` to `end` of the packed step: consecutive new tokens of one sequence, from position `start` on.

    `pages` is the block table that covers them and all before.
    """

    first: int
    end: int
    start: int
    pages: PageList

    @property
    def length(self) -> int:
        return self.start + self.end - self.first

    def plainly_causal(self, window: int | None) -> bool:
        """Whether each row attends to all rows before it and to nothing else."""
        return self.start == 0 and (window is None or window >= self.length)

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """What to add to scores: `[end - first, length]`, 0 or minus infinity."""
        device = self.pages.numbers.device
        queries = torch.arange(self.start, self.length, device=device)[:, None]
        keys = torch.arange(self.length, device=device)
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        return _minus_infinity(hidden, dtype)


@dataclass(frozen=True, slots=True)
class PackedStep:
    """All chunks of a step in one row of T tokens, in batch order.

    `input_ids`, `positions` and `slots` are `[T]` int64; `sampled` `[n]` are the rows whose logits are wanted;
    `opened` `[m]` are the pages that this step begins and does not fill.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sampled: torch.Tensor
    opened: torch.Tensor
    decodes: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillSpan, ...]

    def on(self, device: torch.device) -> "PackedStep":
        """The same on a device, where it arrives in one copy."""
        moved = iter(_moved(list(self._tensors()), device))
        ids, positions, slots, sampled, opened = (next(moved) for _ in range(5))
        decodes = tuple(
            replace(
                group,
                rows=next(moved) if isinstance(group.rows, torch.Tensor) else group.rows,
                pages=replace(group.pages, numbers=next(moved)),
                lengths=next(moved),
            )
            for group in self.decodes
        )
        prefills = tuple(replace(span, pages=replace(span.pages, numbers=next(moved))) for span in self.prefills)
        return PackedStep(ids, positions, slots, sampled, opened, decodes, prefills)

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from (self.input_ids, self.positions, self.slots, self.sampled, self.opened)
        for group in self.decodes:
            if isinstance(group.rows, torch.Tensor):
                yield group.rows
            yield from (group.pages.numbers, group.lengths)
        for span in self.prefills:
            yield span.pages.numbers


def _moved(tensors: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Index tensors `[n]` int64, all in one copy that nobody waits for."""
    together = torch.cat(tensors)
    if device.type == "cuda":
        together = together.pin_memory()
    return torch.split(together.to(device, non_blocking=True), [len(each) for each in tensors])


def pack(
    chunks: Sequence[Chunk], page_tokens: int, zero_page: int, layer_page_bytes: int, group_bytes: int = CACHE_BYTES
) -> PackedStep:
    """Chunks of one token attend in groups, whatever they are, whose KV of a layer takes `group_bytes` at most; longer
    ones each for itself."""
    positions, slots, opened = [], [], []
    sampled: list[int] = []
    decodes: list[_Decode] = []
    prefills: list[PrefillSpan] = []
    row = 0
    for chunk in chunks:
        length, end = chunk.start + len(chunk.tokens), row + len(chunk.tokens)
        table = np.array(chunk.table[: pages_for(length, page_tokens)], np.int64)
        assert len(table) * page_tokens >= length, f"the block table of {chunk.sequence} is too short"
        position = np.arange(chunk.start, length)
        positions.append(position)
        slots.append(table[position // page_tokens] * page_tokens + position % page_tokens)
        if length % page_tokens and (len(table) - 1) * page_tokens >= chunk.start:
            opened.append(int(table[-1]))
        sampled.extend(range(end - chunk.logits, end))
        if len(chunk.tokens) == 1:
            decodes.append(_Decode(row, length, table))
        else:
            prefills.append(PrefillSpan(row, end, chunk.start, PageList.of(table)))
        row = end
    return PackedStep(
        torch.tensor([token for chunk in chunks for token in chunk.tokens]),
        torch.from_numpy(np.concatenate(positions)),
        torch.from_numpy(np.concatenate(slots)),
        torch.tensor(sampled, dtype=torch.int64),
        torch.tensor(opened, dtype=torch.int64),
        tuple(_group(decodes, zero_page, max(1, group_bytes // layer_page_bytes))),
        tuple(prefills),
    )


@dataclass(frozen=True, slots=True)
class _Decode:
    row: int
    length: int
    table: npt.NDArray[np.int64]


def _group(decodes: list[_Decode], zero_page: int, most_pages: int) -> Iterator[DecodeGroup]:
    """Longest first, so that rows of similar length share a group and little is padded."""
    ordered = sorted(decodes, key=lambda decode: -decode.length)
    while ordered:
        width = len(ordered[0].table)
        count = max(1, most_pages // width)
        longest, ordered = ordered[:count], ordered[count:]
        members = sorted(longest, key=lambda decode: decode.row)
        pages = np.full((len(members), width), zero_page, np.int64)
        for place, member in enumerate(members):
            pages[place, : len(member.table)] = member.table
        yield DecodeGroup(
            _rows([member.row for member in members]),
            PageList.of(pages.reshape(-1)),
            torch.tensor([member.length for member in members]),
            longest[0].length,
        )


def _rows(ascending: list[int]) -> torch.Tensor | slice:
    """Rows that follow each other are read and written where they lie."""
    first, last = ascending[0], ascending[-1]
    return slice(first, last + 1) if last - first + 1 == len(ascending) else torch.tensor(ascending)


def _minus_infinity(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
