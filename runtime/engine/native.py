"""The native engine's compute: a checkpoint on the CPU behind the engine core. Joins loading, runner and sampler."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from llguidance import LLTokenizer

from runtime.domain.batching import Limits
from runtime.domain.pool_size import Room
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import Sampled
from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Chunk
from runtime.engine.attention import ATTENTION
from runtime.engine.core import EngineCore, SampleRow
from runtime.engine.fusing import fuse
from runtime.engine.grammar import Grammars
from runtime.engine.kernels.library import kernels
from runtime.engine.kv_tensors import DTYPES, StepKV
from runtime.engine.laid_kv import OWN_FORM, PoolForm, pool_of
from runtime.engine.layers import Layerwise
from runtime.engine.memory import check_fits, free_bytes, room_of
from runtime.engine.packing import pack_linears
from runtime.engine.parallel.leader import GroupRunner, start_group
from runtime.engine.quantizing import quantize_linears
from runtime.engine.runner import Runner, TorchRunner
from runtime.engine.sampler import sample
from runtime.engine.scoring import score
from runtime.model.checkpoint import Checkpoint, open_checkpoint
from runtime.model.loading import load_model
from runtime.model.share import shares_of
from runtime.model.spec import checkpoint_spec
from runtime.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """How a checkpoint is run. `dtype` is that of weights, activations and KV; `quantized`, linear layers keep their
    weights in 8 bits; `max_tokens` None is the model's own; `ranks` processes compute together, on `threads` threads in
    all. `form` is how the pool lies in the host's memory."""

    name: str
    path: Path
    dtype: str
    page_tokens: int
    threads: int
    quantized: bool = False
    max_tokens: int | None = None
    ranks: int = 1
    form: PoolForm = OWN_FORM


def spec_of(checkpoint: Checkpoint, settings: NativeSettings) -> ModelSpec:
    """What the mesh compares. Reads all weights once for the fingerprint; raises `ModelError` for a bad setting."""
    return checkpoint_spec(
        checkpoint,
        name=settings.name,
        dtype=settings.dtype,
        page_tokens=settings.page_tokens,
        quantized=settings.quantized,
        max_tokens=settings.max_tokens,
    )


class NativeCompute:
    """Used on one thread, the engine's: torch keeps its number of threads for each."""

    def __init__(self, runner: Runner, group: GroupRunner | None = None) -> None:
        """`group` is the runner too, when there are other ranks, which end with it."""
        self._runner = runner
        self._group = group

    def run(self, chunks: tuple[Chunk, ...], rows: tuple[SampleRow, ...]) -> tuple[list[Sampled], list[PromptScores]]:
        logits, scored = score(self._runner.forward(chunks), chunks)
        return sample(logits, rows), scored

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        return self._runner.kv.read_pages(pages)

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        self._runner.kv.write_page(page, payload, tokens)

    def watch(self) -> None:
        if self._group is not None:
            self._group.check()

    def close(self) -> None:
        if self._group is not None:
            self._group.close()


def build_native(
    settings: NativeSettings, limits: Limits, pages: Callable[[Room], int], free: Callable[[], int] = free_bytes
) -> EngineCore:
    """An engine core over a checkpoint, and a pool of as many pages as `pages` makes of the room, `free` bytes.
    `ThreadedEngine` calls this on its own thread, whose settings it changes: how many threads torch uses, and that it
    takes denormal numbers for zero.

    Raises `ModelError` for a checkpoint that is missing, damaged, not supported or too large for what memory is free,
    and what `pages` raises.
    """
    torch.set_num_threads(settings.threads)
    # Sharp attention makes numbers so small that a processor computes with them in microcode: at half the speed.
    torch.set_flush_denormal(True)
    checkpoint = open_checkpoint(settings.path)
    shares = shares_of(checkpoint, settings.ranks) if settings.ranks > 1 else []
    spec = spec_of(checkpoint, settings)
    room = room_of(checkpoint, spec, free(), shares)
    count = pages(room)
    check_fits(checkpoint, spec, count, room.free, shares)
    tokenizer = Tokenizer(settings.path)
    spare = free() - count * room.page_bytes
    if not shares:
        whole = _whole(checkpoint, pool_of(spec, count, settings.form), spare, quantized=settings.quantized)
        return engine_core(spec, count, limits, NativeCompute(whole), tokenizer, layerwise=whole)
    group = start_group(settings.path, spec, shares, count, threads=settings.threads, spare=spare, form=settings.form)
    return engine_core(spec, count, limits, NativeCompute(group, group), tokenizer)


def _whole(checkpoint: Checkpoint, kv: StepKV, spare: int, *, quantized: bool) -> TorchRunner:
    model = load_model(checkpoint, DTYPES[kv.spec.dtype], ATTENTION)
    if quantized:
        quantize_linears(model.base_model)
    own = kernels()
    pack_linears(model, spare, own)
    if own is not None:
        fuse(model, DTYPES[kv.spec.dtype], own)
    runner = TorchRunner(model, kv, own)
    runner.probe()
    return runner


def engine_core(
    spec: ModelSpec,
    pages: int,
    limits: Limits,
    compute: NativeCompute,
    tokenizer: Tokenizer,
    *,
    scores: bool = True,
    layerwise: Layerwise | None = None,
) -> EngineCore:
    """The engine core of a compute, whose pool has `pages` pages. `scores`: it has the logits of any token, not just of
    the last of a chunk. `layerwise`: it tells of the layers of a step as they are written."""
    grammars = Grammars(lambda: LLTokenizer(tokenizer.to_json(), spec.vocab, sorted(tokenizer.eos_ids)))
    eos_ids, decoder = tokenizer.eos_ids, tokenizer.decoder
    return EngineCore(spec, pages, limits, compute, eos_ids, decoder, grammars, scores=scores, layerwise=layerwise)
