"""One rank of a group: its part of the model, and its end of the sums. The same in the leader and in a follower."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from runtime.domain.spec import ModelSpec
from runtime.engine.attention import ATTENTION
from runtime.engine.fusing import fuse
from runtime.engine.kernels.library import kernels
from runtime.engine.kv_tensors import DTYPES
from runtime.engine.laid_kv import OWN_FORM, PoolForm, pool_of
from runtime.engine.packing import pack_linears
from runtime.engine.parallel.summing import Group, sum_over
from runtime.engine.runner import TorchRunner
from runtime.errors import ModelError
from runtime.model.checkpoint import open_checkpoint
from runtime.model.loading import load_share
from runtime.model.share import FIELD, Share


@dataclass(frozen=True, slots=True)
class RankPlan:
    """What a rank has to know. `spec` is the whole model's, `pages` the pool's; `spare` are bytes that it may use for
    speed; `store` is where the ranks meet, and no collective takes longer than `deadline_s`. `form` is how the pool of
    the rank lies in memory."""

    path: Path
    share: Share
    spec: ModelSpec
    pages: int
    threads: int
    spare: int
    store: Path
    deadline_s: float
    form: PoolForm = OWN_FORM

    @property
    def described(self) -> str:
        return f"rank {self.share.rank} of {self.share.ranks}"


def load_rank(plan: RankPlan) -> PreTrainedModel:
    """The rank's part of the weights. Changes the settings of this thread, as `build_native` does."""
    torch.set_num_threads(plan.threads)
    torch.set_flush_denormal(True)
    return load_share(open_checkpoint(plan.path), DTYPES[plan.spec.dtype], ATTENTION, plan.share)


def meet(plan: RankPlan) -> Group:
    """Raises `EngineFailed` when another rank does not come."""
    return Group(plan.store, plan.share.rank, plan.share.ranks, plan.deadline_s, torch.device("cpu"))


def join_rank(plan: RankPlan, model: PreTrainedModel, group: Group) -> TorchRunner:
    """Make the rank's part of the model one with those of the others, and run a few tokens together.

    Raises `EngineFailed` when one is gone, and `ModelError` when they do not agree on what comes out.
    """
    sum_over(model, group)
    own = kernels()
    pack_linears(model, plan.spare, own)
    if own is not None:
        fuse(model, DTYPES[plan.spec.dtype], own)
    spec = replace(plan.spec, kv_heads=plan.share.kv.held)
    runner = TorchRunner(model, pool_of(spec, plan.pages, plan.form), own)
    ends: list[torch.Tensor] = []
    watching = model.base_model.register_forward_hook(lambda _, __, output: ends.append(output.last_hidden_state))
    try:
        runner.probe()
    finally:
        watching.remove()
    # A sum that was forgotten leaves every rank with something else.
    if not group.agree(ends[-1]):
        raise ModelError(f"{FIELD}: {type(model).__name__} cannot be split: its ranks compute different things")
    return runner
