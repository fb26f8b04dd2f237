"""The native engine's compute: a checkpoint on the CPU behind the engine core. Joins loading, runner and sampler."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from llguidance import LLTokenizer

from runtime.domain.batching import Limits
from runtime.domain.sequence import Sampled
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Chunk
from runtime.engine.attention import ATTENTION
from runtime.engine.core import EngineCore, SampleRow
from runtime.engine.grammar import Grammars
from runtime.engine.kv_tensors import DTYPES, KVTensors
from runtime.engine.memory import check_fits, free_bytes
from runtime.engine.packing import pack_linears
from runtime.engine.runner import CpuRunner, Runner
from runtime.engine.sampler import sample
from runtime.model.checkpoint import Checkpoint, open_checkpoint
from runtime.model.loading import load_model
from runtime.model.spec import checkpoint_spec
from runtime.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """How a checkpoint is run. `dtype` is that of weights, activations and KV; `max_tokens` None is the model's own."""

    name: str
    path: Path
    dtype: str
    page_tokens: int
    threads: int
    max_tokens: int | None = None


def spec_of(checkpoint: Checkpoint, settings: NativeSettings) -> ModelSpec:
    """What the mesh compares. Reads all weights once for the fingerprint; raises `ModelError` for a bad setting."""
    return checkpoint_spec(
        checkpoint,
        name=settings.name,
        dtype=settings.dtype,
        page_tokens=settings.page_tokens,
        max_tokens=settings.max_tokens,
    )


class NativeCompute:
    """Used on one thread, the engine's: torch keeps its number of threads for each."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, chunks: tuple[Chunk, ...], rows: tuple[SampleRow, ...]) -> list[Sampled]:
        return sample(self._runner.forward(chunks), rows)

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        return self._runner.kv.read_pages(pages)

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        self._runner.kv.write_page(page, payload, tokens)


def build_native(settings: NativeSettings, limits: Limits, pages: Callable[[ModelSpec], int]) -> EngineCore:
    """An engine core over a checkpoint and a pool of `pages` pages; `ThreadedEngine` calls this on its own thread,
    whose settings it changes: how many threads torch uses, and that it takes denormal numbers for zero.

    Raises `ModelError` for a checkpoint that is missing, damaged, not supported or too large for what memory is free,
    and what `pages` raises.
    """
    torch.set_num_threads(settings.threads)
    # Sharp attention makes numbers so small that a processor computes with them in microcode: at half the speed.
    torch.set_flush_denormal(True)
    checkpoint = open_checkpoint(settings.path)
    spec = spec_of(checkpoint, settings)
    count = pages(spec)
    check_fits(checkpoint, spec, count, free_bytes())
    tokenizer = Tokenizer(settings.path)
    model = load_model(checkpoint, DTYPES[settings.dtype], ATTENTION)
    pack_linears(model, free_bytes() - count * spec.page_bytes)
    runner = CpuRunner(model, KVTensors(spec, count))
    runner.probe()
    return engine_core(spec, count, limits, runner, tokenizer)


def engine_core(spec: ModelSpec, pages: int, limits: Limits, runner: Runner, tokenizer: Tokenizer) -> EngineCore:
    """The engine core of a runner, whose pool has `pages` pages."""
    grammars = Grammars(lambda: LLTokenizer(tokenizer.to_json(), spec.vocab, sorted(tokenizer.eos_ids)))
    return EngineCore(spec, pages, limits, NativeCompute(runner), tokenizer.eos_ids, tokenizer.decoder, grammars)
