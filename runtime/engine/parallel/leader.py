"""Rank 0 of a group, in the worker's own process: a runner like any other, whose steps all ranks run.

It alone knows the schedule and samples. Pages leave and enter it as those of one engine: how many ranks there are is
nobody else's business.
"""

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import torch

from runtime.domain.spec import ModelSpec
from runtime.domain.steps import Chunk
from runtime.engine.laid_kv import OWN_FORM, PoolForm
from runtime.engine.parallel.channel import Join, Joined, Loaded, Read, Step, Write
from runtime.engine.parallel.followers import Followers, Start, start_process
from runtime.engine.parallel.rank import RankPlan, join_rank, load_rank, meet
from runtime.engine.parallel.summing import Group
from runtime.engine.runner import PoolPages, TorchRunner
from runtime.errors import EngineFailed, StartError
from runtime.model.share import HeadSplit, Share

# Ranks do the same work in the same time; whoever is this late is not going to come.
DEADLINE_S = 60.0


class GroupPages:
    """The pool's pages, of which each rank holds its heads."""

    def __init__(self, own: PoolPages, followers: Followers, heads: HeadSplit, spec: ModelSpec) -> None:
        self._own = own
        self._followers = followers
        self._heads = heads
        self._rows = 2 * spec.layers
        self._head_bytes = spec.token_bytes // (self._rows * spec.kv_heads)

    def read_pages(self, pages: Iterable[tuple[int, int]]) -> list[bytes]:
        """Each head of one of the ranks that hold it."""
        wanted = tuple(pages)
        others = self._heads.tellers[1:]
        for rank in others:
            self._followers.tell(rank, Read(wanted))
        parts = [self._own.read_pages(wanted)]
        parts += [self._followers.hear(rank, list) for rank in others]
        return [self._joined([part[place] for part in parts], tokens) for place, (_, tokens) in enumerate(wanted)]

    def write_page(self, page: int, payload: bytes | memoryview, tokens: int) -> None:
        whole = np.frombuffer(payload, np.uint8).reshape(self._rows * tokens, -1, self._head_bytes)
        for rank in range(1, self._heads.ranks):
            self._followers.tell(rank, Write(page, tokens, whole[:, self._heads.of(rank)].tobytes()))
        self._own.write_page(page, whole[:, self._heads.of(0)].tobytes(), tokens)

    def _joined(self, parts: Sequence[bytes], tokens: int) -> bytes:
        rows = self._rows * tokens
        return np.concatenate([np.frombuffer(part, np.uint8).reshape(rows, -1) for part in parts], axis=1).tobytes()


class GroupRunner:
    """Runs the chunks on all ranks at once."""

    def __init__(self, own: TorchRunner, group: Group, followers: Followers, plan: RankPlan) -> None:
        self.kv = GroupPages(own.kv, followers, plan.share.kv, plan.spec)
        self._own = own
        self._group = group
        self._followers = followers

    @property
    def pids(self) -> list[int]:
        """The processes of the other ranks."""
        return self._followers.pids

    def forward(self, chunks: tuple[Chunk, ...]) -> torch.Tensor:
        """Raises `EngineFailed` by the name of a rank that is gone."""
        self._followers.tell_all(Step(chunks))
        try:
            return self._own.forward(chunks)
        except EngineFailed as error:
            raise self._followers.blame(error.message) from error

    def check(self) -> None:
        """Raise `EngineFailed` when a rank has ended."""
        self._followers.check()

    def close(self) -> None:
        """End the other ranks; nothing is run any more."""
        self._followers.close()
        self._group.close()


def start_group(
    path: Path,
    spec: ModelSpec,
    shares: Sequence[Share],
    pages: int,
    *,
    threads: int,
    spare: int,
    form: PoolForm = OWN_FORM,
    start: Start = start_process,
    deadline_s: float = DEADLINE_S,
) -> GroupRunner:
    """Start a rank for each share, the first of them here. `threads` and `spare` are of all ranks together, and each
    has a pool of that form.

    Raises `SetupError` by the name of a rank that cannot start; nothing is left of the others then.
    """
    ranks = len(shares)
    with tempfile.TemporaryDirectory(prefix="baton-ranks-") as folder, ExitStack() as stack:
        plans = [
            RankPlan(
                path=path,
                share=share,
                spec=spec,
                pages=pages,
                threads=max(1, threads // ranks),
                spare=spare // ranks,
                store=Path(folder) / "store",
                deadline_s=deadline_s,
                form=form,
            )
            for share in shares
        ]
        followers = stack.enter_context(closing(Followers(plans[1:], start)))
        model = load_rank(plans[0])
        followers.wait_started(Loaded)
        try:
            followers.tell_all(Join())
            group = stack.enter_context(closing(meet(plans[0])))
            own = join_rank(plans[0], model, group)
        except EngineFailed as error:
            raise StartError(followers.blame(error.message).message) from error
        followers.wait_started(Joined)
        stack.pop_all()
    return GroupRunner(own, group, followers, plans[0])
