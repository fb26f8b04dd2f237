"""The other ranks of a group, as its leader sees them: processes that are started, told, heard, blamed and ended."""

import logging
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from runtime.engine.parallel.channel import Channel, Failed, Gone
from runtime.engine.parallel.rank import RankPlan
from runtime.errors import EngineFailed, ModelError, StartError

# How long to look for the rank whose end made the others fail: it may take the kernel a moment to end it.
_BLAME_S = 2.0
_LOOK_S = 0.02
_END_S = 5.0
_Word = TypeVar("_Word")
_log = logging.getLogger(__name__)


class Process(Protocol):
    """What is needed of a process; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int: ...


Start = Callable[[socket.socket, str], Process]


def start_process(theirs: socket.socket, name: str) -> Process:
    """A follower at that end of a socket, out of reach of the terminal's signals; `name` is for its log."""
    descriptor = theirs.fileno()
    return subprocess.Popen(
        [sys.executable, "-m", "runtime.engine.parallel.process", str(descriptor), name],
        pass_fds=(descriptor,),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",  # where no folder of the user's can be taken for a package of ours
    )


class Follower:
    """One of them. Gone to its leader is also who is silent for as long as a collective may take."""

    def __init__(self, plan: RankPlan, start: Start) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = start(theirs, plan.described)
        self.plan = plan
        self._last: Failed | None = None
        self.channel = Channel(ours, plan.deadline_s)
        # One that is gone already is found out when it is listened to.
        with suppress(Gone):
            self.channel.send(plan)

    def __str__(self) -> str:
        return self.plan.described

    def fileno(self) -> int:
        return self.channel.fileno()

    def cause(self) -> str | None:
        """How it ended, in words that follow its name; None while it lives, or when another rank's end ended it."""
        self._last = self._last or self._last_word()
        if self._last is not None:
            return None if self._last.apart else f"failed: {self._last.reason}"
        status = self.process.poll()
        if status is None:
            return None
        return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"

    def end(self) -> None:
        self.channel.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _last_word(self) -> Failed | None:
        """Whatever it told before is of no use any more."""
        with suppress(Gone):
            while select.select([self], [], [], 0)[0]:
                word = self.channel.receive()
                if isinstance(word, Failed):
                    return word
        return None


class Followers:
    """Started at once, each with its plan. Close it whatever happens."""

    def __init__(self, plans: Sequence[RankPlan], start: Start = start_process) -> None:
        self._all: list[Follower] = []
        try:
            for plan in plans:
                self._all.append(Follower(plan, start))
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [follower.process.pid for follower in self._all]

    def wait_started(self, kind: type[object]) -> None:
        """Until each has told a word of that kind; raises `SetupError` by the name of one that cannot."""
        waiting = list(self._all)
        while waiting:
            for follower in select.select(waiting, [], [])[0]:
                _log.info("%s: %s", follower, self._first(follower, kind))
                waiting.remove(follower)

    def tell(self, rank: int, message: object) -> None:
        """Raises `EngineFailed` by the name of a rank that is gone."""
        follower = self._all[rank - 1]
        try:
            follower.channel.send(message)
        except Gone as error:
            raise self.blame(f"{follower}: {error}") from error

    def tell_all(self, message: object) -> None:
        for follower in self._all:
            self.tell(follower.plan.share.rank, message)

    def hear(self, rank: int, kind: type[_Word]) -> _Word:
        """The next that a rank tells. Raises `EngineFailed` when it is gone."""
        follower = self._all[rank - 1]
        try:
            word = follower.channel.receive()
        except Gone as error:
            raise self.blame(f"{follower}: {error}") from error
        if isinstance(word, Failed):
            raise EngineFailed(f"{follower} failed: {word.reason}")
        assert isinstance(word, kind), word
        return word

    def check(self) -> None:
        """Raise `EngineFailed` when a rank has ended."""
        for follower in self._all:
            if follower.process.poll() is not None:
                raise self.blame(f"{follower} ended")

    def blame(self, otherwise: str) -> EngineFailed:
        """Why the group failed, by the name of the rank that began it where one is found."""
        until = time.monotonic() + _BLAME_S
        while time.monotonic() < until:
            for follower in self._all:
                cause = follower.cause()
                if cause is not None:
                    return EngineFailed(f"{follower} {cause}")
            time.sleep(_LOOK_S)
        return EngineFailed(otherwise)

    def close(self) -> None:
        """End all of them, and wait until they have ended."""
        for follower in self._all:
            follower.channel.close()
        for follower in self._all:
            follower.end()

    def _first(self, follower: Follower, kind: type[object]) -> object:
        try:
            word = follower.channel.receive(patient=True)
        except Gone:
            raise StartError(self.blame(f"{follower} ended").message) from None
        if isinstance(word, Failed):
            raise ModelError(f"{follower}: {word.reason}") if word.setup else StartError(f"{follower} {word.reason}")
        assert isinstance(word, kind), word
        return word
