"""Ranks as processes: they answer, they leave nothing behind, and none outlives the others, whoever dies how."""

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from runtime.domain.batching import Limits
from runtime.domain.steps import DecodeLocal, Submit
from runtime.engine.core import EngineCore
from runtime.engine.native import build_native
from runtime.engine.parallel.channel import Channel, Failed
from runtime.engine.parallel.followers import Process, start_process
from runtime.engine.threaded import ThreadedEngine
from runtime.errors import EngineFailed, ModelError, StartError
from tests.engine.answering import GREEDY, answers, prompt, run, sequence
from tests.engine.parallel.groups import core_of, group_of, settings_of

PROMPT = prompt(60)
QUICKLY_S = 15.0
# What the killed parent of a test runs: prints the ranks, then steps or sleeps until it is killed.
PARENT = """
import sys
import time
from pathlib import Path
from runtime.domain.steps import DecodeLocal, Submit
from runtime.engine.parallel.followers import start_process
from tests.engine.answering import GREEDY, prompt, sequence
from tests.engine.parallel.groups import core_of, group_of

path, busy = Path(sys.argv[1]), sys.argv[2] == "busy"
group = group_of(path, 2, start=start_process)
core = core_of(group, path)
print(*group.pids, flush=True)
number = 0
while True:
    number += 1
    if not busy:
        time.sleep(60)
    core.apply(Submit(sequence(str(number), prompt(60), GREEDY), DecodeLocal()))
    while core.busy:
        core.step()
"""


STUCK = """
import socket
import sys
import time
from runtime.engine.parallel.process import end_with

end_with(socket.socket(fileno=int(sys.argv[1])))
print("stuck", flush=True)
time.sleep(60)
"""


@contextmanager
def core_of_processes(path: Path, *, deadline_s: float = 60.0) -> Iterator[tuple[EngineCore, int]]:
    """An engine core of two, and the process of the one that follows."""
    group = group_of(path, 2, start=start_process, deadline_s=deadline_s)
    core = core_of(group, path)
    try:
        yield core, group.pids[0]
    finally:
        core.close()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def ours() -> tuple[set[int], set[str], set[Path]]:
    """Processes, ports and folders that could be left behind."""
    here = psutil.Process()
    ports = {str(each.laddr) for each in here.net_connections() if each.status == psutil.CONN_LISTEN}
    folders = set(Path(tempfile.gettempdir()).glob("baton-ranks-*"))
    return {child.pid for child in here.children(recursive=True)}, ports, folders


def test_two_processes_answer_as_transformers_does_and_leave_nothing(
    checkpoint: Callable[[str], Path],
    expected: Callable[[str, tuple[int, ...]], list[int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where nobody else's are
    gc.collect()  # else what tests before this one left goes meanwhile
    before = ours()
    core = build_native(settings_of(checkpoint("llama"), ranks=2), Limits(96, 4), lambda _: 40)
    try:
        assert len(ours()[0]) == len(before[0]) + 1
        assert answers(core, [sequence("a", PROMPT, GREEDY)])["a"] == expected("llama", PROMPT)
    finally:
        core.close()
    assert ours() == before


def test_a_killed_rank_ends_the_group_by_its_name(checkpoint: Callable[[str], Path]) -> None:
    with core_of_processes(checkpoint("llama")) as (core, rank):
        core.apply(Submit(sequence("a", PROMPT, GREEDY), DecodeLocal()))
        core.step()
        began = time.monotonic()
        os.kill(rank, signal.SIGKILL)
        with pytest.raises(EngineFailed, match=r"rank 1 of 2 was killed by SIGKILL"):
            run(core)
        assert time.monotonic() - began < QUICKLY_S


async def test_an_engine_that_has_nothing_to_do_learns_that_a_rank_was_killed(
    checkpoint: Callable[[str], Path],
) -> None:
    pids: list[int] = []

    def build() -> EngineCore:
        group = group_of(checkpoint("llama"), 2, start=start_process)
        pids.extend(group.pids)
        return core_of(group, checkpoint("llama"))

    engine = ThreadedEngine(build)
    try:
        await engine.start()
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(EngineFailed, match=r"rank 1 of 2 was killed by SIGKILL"):
            await anext(engine.steps())
    finally:
        await engine.close()


def test_a_rank_that_hangs_ends_the_group_at_the_deadline(checkpoint: Callable[[str], Path]) -> None:
    with core_of_processes(checkpoint("llama"), deadline_s=3.0) as (core, rank):
        core.apply(Submit(sequence("a", PROMPT, GREEDY), DecodeLocal()))
        core.step()
        os.kill(rank, signal.SIGSTOP)
        with pytest.raises(EngineFailed, match=r"its ranks lost each other"):
            core.step()
    assert gone(rank)


@pytest.mark.parametrize("doing", ["idle", "busy"])
def test_a_rank_ends_with_its_killed_parent(doing: str, checkpoint: Callable[[str], Path]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(checkpoint("llama")), doing], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        (rank,) = map(int, parent.stdout.readline().split())
        assert not gone(rank)
        parent.kill()
    until = time.monotonic() + QUICKLY_S
    while not gone(rank):
        assert time.monotonic() < until, "it outlived its parent"
        time.sleep(0.05)


def test_a_rank_that_listens_to_nobody_ends_with_its_leader() -> None:
    """As one does that loads its weights, or waits in a sum."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-c", STUCK, str(theirs.fileno())]
            rank = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE)
        assert rank.stdout is not None
        rank.stdout.readline()
        assert rank.poll() is None
    with rank:
        assert rank.wait(QUICKLY_S) == 0


def start_and_die(theirs: socket.socket, _: str) -> Process:
    return subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], pass_fds=[theirs.fileno()])


def test_a_rank_that_dies_while_it_starts_is_told_by_its_name(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(StartError, match=r"rank 1 of 2 was killed by SIGKILL"):
        group_of(checkpoint("llama"), 2, start=start_and_die)


@pytest.mark.parametrize(("setup", "kind"), [(True, ModelError), (False, StartError)])
def test_what_a_rank_cannot_start_with_is_told_by_its_name(
    setup: bool, kind: type[Exception], checkpoint: Callable[[str], Path]
) -> None:
    def start(theirs: socket.socket, _: str) -> Process:
        Channel(theirs).send(Failed("there is no room", setup=setup))
        return subprocess.Popen([sys.executable, "-c", "pass"])

    with pytest.raises(kind, match=r"rank 1 of 2.* there is no room"):
        group_of(checkpoint("llama"), 2, start=start)
