"""A rank that follows: it has no schedule of its own and runs what the leader tells it, in the order it is told.

`python -m runtime.engine.parallel.follower FD NAME`: a process that ends when the other end of the socket FD is closed,
whatever it is doing, so that no rank outlives its leader; NAME is what its log calls it.
"""

import logging
import os
import select
import socket
import sys
import threading
import time

from runtime.engine.parallel.channel import Channel, Failed, Join, Joined, Loaded, Read, Step, Write
from runtime.engine.parallel.rank import RankPlan, join_rank, load_rank, meet
from runtime.engine.runner import CpuRunner
from runtime.errors import EngineFailed, SetupError
from runtime.telemetry import log_to_stderr

_log = logging.getLogger(__name__)


def follow(channel: Channel) -> None:
    """The life of a follower; returns when the leader has gone. What it fails with is told to the leader."""
    try:
        plan = channel.receive()
        assert isinstance(plan, RankPlan)
        _serve(channel, _start(channel, plan))
    except OSError:
        return
    except SetupError as error:
        _tell_last(channel, Failed(str(error), setup=True))
    except EngineFailed as error:
        _tell_last(channel, Failed(error.message, apart=True))
    except Exception as error:  # noqa: BLE001 - the root of a process
        _log.exception("the rank failed")
        _tell_last(channel, Failed(f"{type(error).__name__}: {error}"))


def _start(channel: Channel, plan: RankPlan) -> CpuRunner:
    began = time.monotonic()
    model = load_rank(plan)
    channel.send(Loaded(time.monotonic() - began))
    assert isinstance(channel.receive(), Join)
    runner = join_rank(plan, model, meet(plan))
    channel.send(Joined())
    return runner


def _serve(channel: Channel, runner: CpuRunner) -> None:
    while True:
        match channel.receive():
            case Step(chunks):
                runner.forward(chunks)
            case Write(page, tokens, payload):
                runner.kv.write_page(page, payload, tokens)
            case Read(pages):
                channel.send(runner.kv.read_pages(pages))


def _tell_last(channel: Channel, word: Failed) -> None:
    try:
        channel.send(word)
    except OSError:
        _log.warning("failed, and its leader is gone: %s", word.reason)


def _end_with(leader: socket.socket) -> None:
    """Wait until the other end is closed: by its process, or by the kernel when that was killed."""
    poll = select.poll()
    poll.register(leader, select.POLLRDHUP)
    poll.poll()
    os._exit(0)


def main() -> None:
    leader = socket.socket(fileno=int(sys.argv[1]))
    log_to_stderr(sys.argv[2])
    threading.Thread(target=_end_with, args=(leader,), name="leader", daemon=True).start()
    follow(Channel(leader))
    sys.stderr.flush()
    # Threads of torch may still wait for a rank that is gone.
    os._exit(1)


if __name__ == "__main__":
    main()
