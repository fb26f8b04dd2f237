"""How a session's turn ended, for the store: what stays of its answer, what it spent, and what is kept of its KV."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from runtime.domain.generation import Handoffs
from runtime.domain.retention import NO_RETENTION, Pause, Promise, Refusal, Retained
from runtime.domain.reuse import Past
from runtime.domain.sessions import Ending, Spent, StopReason, TurnRecord, TurnStatus
from runtime.domain.spending import Amounts, Measure, Purse
from runtime.domain.tools import ToolCall
from runtime.errors import BatonError
from runtime.ids import BootId

Kept = Callable[[Sequence[int], str, bool], int]
"""Given all output tokens, the text shown for them and whether it was stopped: how many of them stay in the context."""

Calls = Callable[[Sequence[int], str], tuple[str, tuple[ToolCall, ...]]]
"""Given the same: the text beside the calls that are in it, and these."""


@dataclass(frozen=True, slots=True)
class End:
    """What ended it."""

    status: TurnStatus
    stop: StopReason | None = None
    error: BatonError | None = None
    limit: Measure | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """How it ran: its prompt's tokens and where their KV was from, what it held and took, after how many attempts on
    which worker, and what that promised to keep."""

    prompt: int
    handoffs: Handoffs
    purse: Purse
    ran: Amounts
    attempts: int
    boot: BootId | None
    promise: Promise | None


def ending_of(
    record: TurnRecord,
    end: End,
    ran: Ran,
    past: Past | None,
    tokens: Sequence[int],
    text: str,
    kept: Kept,
    calls: Calls,
) -> Ending:
    """Of a turn whose whole output are `tokens`, shown as `text`."""
    prepared = record.prepared
    assert prepared is not None, "a turn is prepared before it runs"
    spent = Spent(ran.prompt, ran.handoffs.cached_tokens(ran.prompt), len(tokens))
    # A prompt that no worker began to compute costs nothing, and neither does a turn that failed.
    prompted = ran.handoffs.newest is not None or bool(tokens)
    computed, cached = (spent.prompt - spent.cached) * prompted, spent.cached * prompted
    took = Amounts(computed, cached, spent.completion, int(end.status is not TurnStatus.FAILED))
    ending = Ending(
        end.status,
        end.stop,
        end.error,
        spent=spent,
        attempts=ran.attempts,
        boot=ran.boot,
        handoff=ran.handoffs.newest,
        drift=prepared.drift,
        took=ran.purse.took(took, ran.ran, end.limit),
        limit=end.limit,
        sources=None if past is None else past.sources(ran.prompt, ran.handoffs),
        fingerprint=None if past is None else past.serves,
    )
    if end.status is not TurnStatus.COMMITTED:
        return ending
    said, called = calls(tokens, text)
    stop = StopReason.TOOL_CALLS if called and end.stop is StopReason.END_TURN else end.stop
    stays = kept(tokens, text, stop is not StopReason.LENGTH)
    ending = replace(ending, stop=stop, kept=stays, calls=called, said=said if called else "")
    return replace(ending, retained=_retained(record, ending, ran))


def pause_of(ending: Ending) -> Pause:
    """What the session waits for after a committed turn: a cut answer with calls waits for their results, too."""
    return Pause.TOOLS if ending.calls else Pause.ANSWER


def _retained(record: TurnRecord, ending: Ending, ran: Ran) -> Retained | None:
    """What of the asked is kept, for no longer than the session may spend on it; None where nothing was asked."""
    pause, promise = pause_of(ending), ran.promise
    if not (record.asked.retention or NO_RETENTION).after(pause):
        return None
    if promise is None or promise.refusal is not None:
        return Retained(pause, refusal=Refusal.STOPPED if promise is None else promise.refusal)
    keep_ms = promise.keeps.after(pause)
    if not keep_ms:
        return Retained(pause, refusal=Refusal.NOT_OFFERED)
    kv_bytes, keep_ms = ran.purse.keeps(ending.took, promise.tokens, keep_ms)
    if not keep_ms:
        return Retained(pause, refusal=Refusal.BUDGET)
    return Retained(pause, promise.tokens, kv_bytes, keep_ms, kept_in=promise.kept_in)
