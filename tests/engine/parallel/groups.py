"""Engine cores whose model several ranks share: threads of this process, or real ones."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

from runtime.domain.batching import Limits
from runtime.engine.core import EngineCore
from runtime.engine.native import NativeCompute, NativeSettings, engine_core, spec_of
from runtime.engine.parallel.channel import Channel
from runtime.engine.parallel.follower import follow
from runtime.engine.parallel.followers import Process, Start
from runtime.engine.parallel.leader import GroupRunner, start_group
from runtime.model.checkpoint import open_checkpoint
from runtime.model.share import shares_of
from runtime.model.tokenizer import Tokenizer

PAGE = 32
PATIENCE_S = 100.0


class ThreadRank:
    """A follower on a thread, which ends when its leader closes the socket, as the process does."""

    pid = 0

    def __init__(self, theirs: socket.socket) -> None:
        # Whoever starts it closes that end, which a process has its own copy of.
        self._socket = theirs.dup()
        self._thread = threading.Thread(target=self._follow, name="rank")
        self._thread.start()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0

    def kill(self) -> None:
        raise AssertionError("a rank did not end by itself")

    def wait(self, timeout: float | None = None) -> int:
        self._thread.join(timeout)
        assert not self._thread.is_alive()
        return 0

    def _follow(self) -> None:
        with self._socket:
            follow(Channel(self._socket))


def start_thread(theirs: socket.socket, _: str) -> Process:
    return ThreadRank(theirs)


def group_of(
    path: Path, ranks: int, *, pages: int = 600, start: Start = start_thread, deadline_s: float = PATIENCE_S
) -> GroupRunner:
    opened = open_checkpoint(path)
    spec = spec_of(opened, settings_of(path))
    return start_group(
        path, spec, shares_of(opened, ranks), pages, threads=1, spare=0, start=start, deadline_s=deadline_s
    )


def settings_of(path: Path, ranks: int = 1) -> NativeSettings:
    return NativeSettings("tiny", path, "float32", page_tokens=PAGE, threads=1, ranks=ranks)


def core_of(group: GroupRunner, path: Path, *, pages: int = 600, step_tokens: int = 96) -> EngineCore:
    spec = spec_of(open_checkpoint(path), settings_of(path))
    compute = NativeCompute(group, group)
    return engine_core(spec, pages, Limits(step_tokens, max_running=32), compute, Tokenizer(path))


GroupCore = Callable[..., EngineCore]
