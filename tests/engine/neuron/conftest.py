"""Runners over the stand-in, warmed once for all tests: compiling is what takes long."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from runtime.domain.spec import ModelSpec
from runtime.engine.neuron.attention import STATIC_ATTENTION
from runtime.engine.neuron.buckets import Bucket, Buckets
from runtime.engine.neuron.device import Launch
from runtime.engine.neuron.forward import Forward
from runtime.engine.neuron.kv import NeuronKV
from runtime.engine.neuron.runner import NeuronRunner, Warmed
from runtime.engine.neuron.stand_in import StandIn
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_model
from runtime.model.spec import checkpoint_spec

PAGE = 8
PAGES = 64
BUCKETS = (Bucket(16, 0), Bucket(1, 20), Bucket(32, 20))


@dataclass(frozen=True)
class OnStandIn:
    spec: ModelSpec
    runner: NeuronRunner
    device: StandIn
    warmed: list[Warmed]
    buckets: tuple[Bucket, ...]


class Uncompiled(StandIn):
    """Runs the same functions as they are, for what is not about graphs."""

    def compile(self, function: Launch) -> Launch:
        return function


def on_stand_in(path: Path, buckets: tuple[Bucket, ...], copies: int = 1, device: StandIn | None = None) -> OnStandIn:
    checkpoint = open_checkpoint(path)
    spec = checkpoint_spec(checkpoint, name="tiny", dtype="float32", page_tokens=PAGE)
    device = device or StandIn()
    kv = NeuronKV(spec, PAGES, device, copies)
    forward = Forward(load_model(checkpoint, torch.float32, STATIC_ATTENTION), kv.tensors)
    runner = NeuronRunner(forward, kv, Buckets(buckets, PAGE), device)
    warmed: list[Warmed] = []
    runner.warm(warmed.append)
    return OnStandIn(spec, runner, device, warmed, buckets)


@pytest.fixture(scope="session")
def stand_in(checkpoint: Callable[[str], Path]) -> Callable[[str], OnStandIn]:
    """A warmed runner of one of the tiny checkpoints."""
    made: dict[str, OnStandIn] = {}

    def get(kind: str) -> OnStandIn:
        if kind not in made:
            made[kind] = on_stand_in(checkpoint(kind), BUCKETS if kind == "llama" else BUCKETS[1:])
        return made[kind]

    return get
