"""Decode steps of a GPU as graphs, recorded once and replayed: so one launch takes the place of hundreds.

A graph always reads and writes the same memory. So there is one for each number of rows and pages, rounded up, and a
step only fills in its numbers. Rows that are padding repeat the first one, which writes what that writes anyway.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from runtime.domain.steps import Chunk
from runtime.engine.attention import Scoring, attending, dense_attention
from runtime.engine.kv_tensors import KVTensors
from runtime.engine.paging import PackedStep, pack
from runtime.engine.runner import Runner

_log = logging.getLogger(__name__)
_WARMING = 3
# Pages that the rows of one graph attend to, together: what is more pays for its launches.
_MOST_PAGES = 1 << 14


class Recorder(Protocol):
    """What makes a graph of what a function does."""

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """What `run` gives, and what makes it anew out of what the tensors hold then that `run` reads. Raises
        `RuntimeError` for what cannot be recorded."""


class CudaRecorder:
    """Of the current GPU. All graphs share their memory, as only one of them runs at a time."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARMING):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            output = run()
        return output, graph.replay


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Everything that differs from step to step, views of `all`: for each row its token, position and slot, how many
    tokens it attends to, and its block table."""

    all: torch.Tensor
    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor

    @staticmethod
    def on(device: torch.device, rows: int, pages: int) -> "_Numbers":
        numbers = torch.zeros(rows * (4 + pages), dtype=torch.int64, device=device)
        ids, positions, slots, lengths, tables = torch.split(numbers, [rows] * 4 + [rows * pages])
        return _Numbers(numbers, ids, positions, slots, lengths, tables.view(rows, pages))

    def fill(self, step: PackedStep, zero_page: int) -> None:
        """From a step whose rows are one group; nobody waits for the copy."""
        (group,) = step.decodes
        rows, pages = self.tables.shape
        count = len(group.lengths)
        tables = torch.full((rows, pages), zero_page)
        own = group.pages.numbers.view(count, -1)
        tables[:count, : own.shape[1]] = own
        tables[count:] = tables[0]
        repeated = (_padded(each, rows) for each in (step.input_ids, step.positions, step.slots, group.lengths))
        together = torch.cat((*repeated, tables.flatten()))
        if self.all.device.type == "cuda":
            together = together.pin_memory()
        self.all.copy_(together, non_blocking=True)


def _padded(numbers: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat((numbers, numbers[:1].expand(rows - len(numbers))))


class _RecordedAttention:
    """`attention.Attention` out of the numbers of a graph: nothing in it depends on what they are."""

    def __init__(self, kv: KVTensors, numbers: _Numbers) -> None:
        self._kv = kv
        self._numbers = numbers
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        numbers, rows = self._numbers, len(queries)
        self._kv.write(layer, numbers.slots, keys, values)
        gathered = (each.index_select(0, numbers.tables.flatten()) for each in self._kv.lying(layer))
        past_keys, past_values = (each.view(rows, -1, *each.shape[2:]).transpose(1, 2) for each in gathered)
        shared = queries.view(rows, past_keys.shape[1], -1, queries.shape[-1])
        mask = self._mask(scoring.window, queries.dtype)
        return dense_attention(shared, past_keys, past_values, mask, scoring).flatten(1, 2)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """`[rows, 1, 1, tokens]`."""
        if window not in self._masks:
            ends = self._numbers.lengths[:, None]
            tokens = torch.arange(self._numbers.tables.shape[1] * self._kv.page_tokens, device=ends.device)
            hidden = tokens >= ends
            if window is not None:
                hidden = hidden | (tokens < ends - window)
            shown = torch.zeros(hidden.shape, dtype=dtype, device=ends.device)
            self._masks[window] = shown.masked_fill(hidden, -torch.inf)[:, None, None, :]
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class _Graph:
    numbers: _Numbers
    logits: torch.Tensor
    replay: Callable[[], None]


class GraphedRunner:
    """`runner.Runner` that replays the steps in which every sequence decodes, and runs all others by `plain`, a runner
    of the same model and pool. `most_rows` bounds the rows of a graph."""

    def __init__(
        self, plain: Runner, model: PreTrainedModel, kv: KVTensors, recorder: Recorder, most_rows: int
    ) -> None:
        self.kv = kv
        self._plain = plain
        self._model = model
        self._recorder: Recorder | None = recorder
        self._most_rows = most_rows
        self._graphs: dict[tuple[int, int], _Graph] = {}

    @torch.inference_mode()
    def forward(self, chunks: tuple[Chunk, ...]) -> torch.Tensor:
        """As `Runner.forward`; the logits are the caller's own."""
        kv = self.kv
        if len(chunks) > self._most_rows or any(len(chunk.tokens) != 1 or chunk.logits != 1 for chunk in chunks):
            return self._plain.forward(chunks)
        pages = _rounded(max(chunk.start // kv.page_tokens + 1 for chunk in chunks))
        rows = _rounded(len(chunks))
        graph = self._graph(rows, pages) if rows * pages <= _MOST_PAGES else None
        if graph is None:
            return self._plain.forward(chunks)
        step = pack(chunks, kv.page_tokens, kv.zero_page, 1, rows * pages)
        kv.clear(step.opened.to(kv.device))
        graph.numbers.fill(step, kv.zero_page)
        graph.replay()
        return graph.logits[: len(chunks)].clone()

    def _graph(self, rows: int, pages: int) -> _Graph | None:
        """Recorded when it is first asked for, over numbers that touch no page but the one of zeros, which get zeros
        again; None where this model cannot be recorded."""
        known = self._graphs.get((rows, pages))
        if known is not None or self._recorder is None:
            return known
        numbers = _Numbers.on(self.kv.device, rows, pages)
        numbers.slots.fill_(self.kv.zero_page * self.kv.page_tokens)
        numbers.tables.fill_(self.kv.zero_page)
        numbers.lengths.fill_(1)
        try:
            logits, replay = self._recorder.record(lambda: self._run(numbers))
        except RuntimeError as error:
            _log.warning("decode steps of this model cannot be recorded, and are launched one by one: %s", error)
            self._recorder = None
            return None
        finally:
            self.kv.clear(torch.tensor([self.kv.zero_page], device=self.kv.device))
        return self._graphs.setdefault((rows, pages), _Graph(numbers, logits, replay))

    def _run(self, numbers: _Numbers) -> torch.Tensor:
        inputs = {"input_ids": numbers.ids[None], "position_ids": numbers.positions[None]}
        with attending(_RecordedAttention(self.kv, numbers)):
            logits: torch.Tensor = self._model(**inputs, use_cache=False).logits
        return logits[0].float()


def _rounded(count: int) -> int:
    """The next power of two: few graphs, and no more than half of one is padding."""
    return 1 << (count - 1).bit_length()
