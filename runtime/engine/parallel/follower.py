"""A rank that follows: it has no schedule of its own and runs what the leader tells it, in the order it is told."""

import logging
import time

from runtime.engine.parallel.channel import Channel, Failed, Gone, Join, Joined, Loaded, Read, Step, Write
from runtime.engine.parallel.rank import RankPlan, join_rank, load_rank, meet
from runtime.engine.runner import TorchRunner
from runtime.errors import EngineFailed, SetupError

_log = logging.getLogger(__name__)


def follow(channel: Channel) -> None:
    """The life of a follower; returns when the leader has gone. What it fails with is told to the leader."""
    try:
        plan = channel.receive()
        assert isinstance(plan, RankPlan)
        _serve(channel, _start(channel, plan))
    except Gone:
        return
    except SetupError as error:
        _tell_last(channel, Failed(str(error), setup=True))
    except EngineFailed as error:
        _tell_last(channel, Failed(error.message, apart=True))
    except Exception as error:  # noqa: BLE001 - the root of a process
        _log.exception("the rank failed")
        _tell_last(channel, Failed(f"{type(error).__name__}: {error}"))


def _start(channel: Channel, plan: RankPlan) -> TorchRunner:
    began = time.monotonic()
    model = load_rank(plan)
    channel.send(Loaded(time.monotonic() - began))
    assert isinstance(channel.receive(), Join)
    runner = join_rank(plan, model, meet(plan))
    channel.send(Joined())
    return runner


def _serve(channel: Channel, runner: TorchRunner) -> None:
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
    except Gone:
        _log.warning("failed, and its leader is gone: %s", word.reason)
