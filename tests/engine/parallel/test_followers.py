"""Who is blamed when a group fails: the rank that began it, and not those that failed because of it."""

import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from runtime.engine.parallel.channel import Channel, Failed
from runtime.engine.parallel.followers import Followers, Process
from runtime.engine.parallel.rank import RankPlan
from runtime.engine.simulated import simulated_spec
from runtime.model.share import Share


def plan(rank: int) -> RankPlan:
    share = Share(rank, 3, heads=6, kv_heads=3, head_dim=16)
    spec = simulated_spec("simulated", 4, 256)
    return RankPlan(Path("/nowhere"), share, spec, 8, threads=1, spare=0, store=Path("/nowhere"), deadline_s=10.0)


def start(theirs: socket.socket, name: str) -> Process:
    """Rank 1 only says that it lost the others, rank 2 is killed."""
    ends = "pass" if name == "rank 1 of 3" else "import os, time; time.sleep(0.5); os.kill(os.getpid(), 9)"
    if name == "rank 1 of 3":
        Channel(theirs).send(Failed("its ranks lost each other", apart=True))
    return subprocess.Popen([sys.executable, "-c", ends], pass_fds=[theirs.fileno()])


def test_the_rank_that_was_killed_is_blamed_and_not_the_one_that_lost_it() -> None:
    with closing(Followers([plan(1), plan(2)], start)) as followers:
        assert followers.blame("a step failed").message == "rank 2 of 3 was killed by SIGKILL"
