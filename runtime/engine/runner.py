"""Runs a model over one packed step of many sequences. Owns the device; never samples, schedules or knows text."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from transformers import PreTrainedModel

from runtime.domain.pages import pages_for
from runtime.domain.steps import Chunk
from runtime.engine.attention import StepAttention, attending
from runtime.engine.kernels.library import Kernels
from runtime.engine.kv_tensors import StepKV
from runtime.engine.paging import CACHE_BYTES, pack
from runtime.engine.probing import probe
from runtime.errors import ModelError
from runtime.ids import SequenceId

# What the decode rows of one layer may attend to together where that costs no cache: on an accelerator, whose launches
# cost more than its memory, and where pages are read where they lie.
_MOST_BYTES = 1 << 30


class PoolPages(Protocol):
    """A pool's pages, as they leave and enter a device."""

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        """Of each page and number of tokens, the canonical payload of that many tokens, after all that was started."""

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        """The inverse, before all that is started from now on."""


class Runner(Protocol):
    """What the native engine needs of a device."""

    @property
    def kv(self) -> PoolPages: ...

    def forward(self, chunks: tuple[Chunk, ...]) -> torch.Tensor:
        """Write the chunks' KV; the logits `[n, vocab]` in float32 of the last `logits` tokens of each, in order."""


class TorchRunner:
    """Operation by operation, on the device of the model and of its `kv`. `model` must have been loaded with the
    attention implementation `ATTENTION`. On the CPU `kernels` do what they know to do of its attention."""

    def __init__(self, model: PreTrainedModel, kv: StepKV, kernels: Kernels | None = None) -> None:
        self.kv = kv
        self._model = model
        lying = None if kernels is None else kv.lying(0)
        self._kernels = kernels if lying is not None and Kernels.attends(lying) else None
        gathers = kv.device.type == "cpu" and self._kernels is None
        self._group_bytes = CACHE_BYTES if gathers else _MOST_BYTES
        self._vocab: int = model.config.get_text_config().vocab_size
        self._written: Callable[[int], None] = lambda _: None

    def listen(self, written: Callable[[int], None]) -> None:
        """Tell the number of each layer whose KV of the running step is written, or on a device: is going to be."""
        self._written = written

    def read_layers(self, pages: Iterable[tuple[int, int]], layers: range) -> list[bytes]:
        """Of each page and number of tokens, the canonical payload of these layers."""
        return self.kv.read_layers(pages, layers)

    @torch.inference_mode()
    def forward(self, chunks: tuple[Chunk, ...]) -> torch.Tensor:
        kv = self.kv
        step = pack(chunks, kv.page_tokens, kv.zero_page, kv.layer_page_bytes, self._group_bytes)
        if kv.device.type != "cpu":
            step = step.on(kv.device)
        kv.clear(step.opened)
        inputs = {"input_ids": step.input_ids[None], "position_ids": step.positions[None]}
        with attending(StepAttention(step, kv, self._written, self._kernels)):
            if len(step.sampled):
                logits: torch.Tensor = self._model(**inputs, use_cache=False, logits_to_keep=step.sampled).logits
                return logits[0].float()
            self._model.base_model(**inputs, use_cache=False)
        return torch.empty(0, self._vocab, device=kv.device)

    @torch.inference_mode()
    def probe(self) -> None:
        """Run a few tokens: without KV, then as prefill and as decode in the first pages of an empty pool.

        Raises `ModelError` naming what the model does that Baton's attention does not know.
        """
        spec = self.kv.spec
        self._check_sizes()
        probe(self._model, spec.layers, (spec.kv_heads, spec.head_dim), spec.max_tokens)
        sequence, table = SequenceId("probe"), tuple(range(pages_for(3, self.kv.page_tokens)))
        for chunk in (Chunk(sequence, (0, 1), 0, table, sample=False), Chunk(sequence, (0,), 2, table, sample=True)):
            if not torch.isfinite(self.forward((chunk,))).all():
                raise ModelError(
                    "the model's logits are not finite: its weights are damaged, or overflow in this dtype"
                )
        self.kv.clear(torch.tensor(table, device=self.kv.device))

    def _check_sizes(self) -> None:
        """Whether the spec, which was read without transformers, is what transformers made of the configuration."""
        spec, config = self.kv.spec, self._model.config.get_text_config()
        for name, own, wanted in (
            ("layers", spec.layers, config.num_hidden_layers),
            ("tokens in its vocabulary", spec.vocab, config.vocab_size),
        ):
            if own != wanted:
                raise ModelError(f"the configuration was read as one of {own} {name}, the model has {wanted}")
