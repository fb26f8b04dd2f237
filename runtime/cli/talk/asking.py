"""Asks a mesh for one answer and keeps what there is to tell about it. Never prints."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Unpack

from batonmesh import Client, Event, Options, Prompt, TurnStream
from batonmesh.errors import from_error
from batonmesh.messages import whole
from batonmesh.turns import TurnMessage, whole_turn
from runtime.domain.messages import Handoff
from runtime.domain.sequence import FinishReason
from runtime.wire.handoff import unpack_handoff
from runtime.wire.sequence import unpack_finish
from runtime.wire.session import unpack_stop


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. Seconds count from the request: `first_s` to the first token, `whole_s` to the last."""

    text: str
    tokens: int
    finish: FinishReason
    first_s: float
    whole_s: float
    handoff: Handoff
    attempts: int

    @property
    def step_s(self) -> float | None:
        """Mean time between two tokens; None when there was only one."""
        return (self.whole_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.whole_s


def ask(
    client: Client,
    model: str,
    prompt: Prompt,
    show: Callable[[str], None],
    *,
    timeout: float | None = None,
    **options: Unpack[Options],
) -> Reply:
    """`show` gets the text as it comes. Left by any exception, the request is cancelled."""
    began = time.perf_counter()
    came: list[float] = []

    def shown(events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            came.append(time.perf_counter() - began)
            show(event.text)
            yield event

    with client.generate(model, prompt, timeout=timeout, **options) as stream:
        answer = whole(shown(stream))
    final, tokens = answer.final, len(answer.tokens)
    return Reply(
        text=answer.text,
        tokens=tokens,
        finish=unpack_finish(final.finish_reason, "finish_reason"),
        first_s=came[0],
        whole_s=came[max(tokens - 1, 0)],
        handoff=unpack_handoff(final.handoff),
        attempts=final.attempts,
    )


def follow(stream: TurnStream, show: Callable[[str], None]) -> Reply:
    """The rest of a session's turn. Left by any exception, the turn goes on. Raises how the turn failed."""
    began = time.perf_counter()
    came: list[float] = []

    def shown() -> Iterator[TurnMessage]:
        for message in stream:
            if message.HasField("tokens"):
                came.append(time.perf_counter() - began)
                show(message.tokens.text)
            yield message

    with stream:
        answer = whole_turn(shown())
    turn = answer.turn
    if turn.HasField("error"):
        raise from_error(turn.error)
    if turn.handoff.prompt_tokens:
        handoff = unpack_handoff(turn.handoff)
    else:
        handoff = Handoff(prompt_tokens=turn.usage.prompt_tokens)
    return Reply(
        text=answer.text,
        tokens=len(answer.tokens),
        finish=unpack_stop(turn.stop_reason),
        first_s=came[0] if came else time.perf_counter() - began,
        whole_s=came[-1] if came else time.perf_counter() - began,
        handoff=handoff,
        attempts=turn.attempts,
    )
