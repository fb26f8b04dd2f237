"""Whether a model can run as static graphs at all, asked of it on the CPU before anything is compiled."""

import torch
from transformers import PreTrainedModel

from runtime.domain.pages import pages_for
from runtime.domain.spec import ModelSpec
from runtime.engine import probing
from runtime.engine.neuron.buckets import Bucket, Piece
from runtime.engine.neuron.forward import Forward, plan_of
from runtime.engine.neuron.kv import NeuronKV
from runtime.engine.neuron.stand_in import StandIn
from runtime.errors import ModelError


@torch.no_grad()
def probe(model: PreTrainedModel, spec: ModelSpec) -> None:
    """Run a few tokens: without KV, then as a launch each in a pool of their own, two, and one after them.

    Raises `ModelError` naming what the model does that Baton's attention does not know.
    """
    probing.probe(model, spec.layers, (spec.kv_heads, spec.head_dim), spec.max_tokens)
    table = tuple(range(pages_for(3, spec.page_tokens)))
    forward = Forward(model, NeuronKV(spec, len(table), StandIn()).tensors)
    bucket = Bucket(2, len(table))
    for piece in (Piece(bucket, (0, 1), 0, table), Piece(bucket, (0,), 2, table)):
        logits = forward(bucket, plan_of(piece, spec.page_tokens))
        if not torch.isfinite(logits).all():
            raise ModelError("the model's logits are not finite: its weights are damaged, or overflow in this dtype")
