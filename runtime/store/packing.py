"""Values as the stores' columns hold them: token ids packed and compressed, everything else as msgpack.

A field that an older Baton did not write reads as its default. Never touches a database.
"""

import hashlib
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple
from typing import Any

import msgpack
from google.protobuf.message import DecodeError

from runtime.domain.messages import Handoff
from runtime.domain.notices import Happening, What
from runtime.domain.retention import Holding, KeptIn, Pause, Refusal, Retained, Retention
from runtime.domain.reuse import Missed, Sources
from runtime.domain.sessions import (
    Asked,
    Ending,
    Item,
    OnConflict,
    Policies,
    Session,
    Spent,
    StopReason,
    TurnEvent,
    TurnStatus,
)
from runtime.domain.spending import Amounts, Limits, Measure, Reserve
from runtime.domain.tools import NO_TOOLS, Tool, Toolbox, ToolCall, ToolChoice
from runtime.errors import DataCorrupt, InvalidArgument, from_code
from runtime.ids import BootId, TurnId, WorkerId
from runtime.wire.sequence import sampling_bytes, sampling_from

UNREADABLE = (ValueError, KeyError, TypeError, msgpack.UnpackException, DecodeError, InvalidArgument, DataCorrupt)
"""What reading a value raises that is damaged, or that only a newer Baton understands."""
_PLAIN, DEFLATED = b"\0", b"\1"
_WORTH_IT = 64
_MAX_PACKED = 64 << 20
_CHAIN_BYTES = 16
ROOT_CHAIN = bytes(_CHAIN_BYTES)


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Four bytes each, little endian; many of them deflated."""
    words = array("I", tokens)
    if sys.byteorder == "big":
        words.byteswap()
    packed = words.tobytes()
    return _PLAIN + packed if len(packed) < _WORTH_IT else DEFLATED + zlib.compress(packed, 1)


def unpack_tokens(packed: bytes) -> "array[int]":
    """Raises `DataCorrupt`."""
    words = array("I")
    try:
        words.frombytes(packed[1:] if packed[:1] == _PLAIN else _inflated(packed[1:]))
    except (zlib.error, ValueError) as error:
        raise DataCorrupt(f"stored tokens cannot be read: {error}") from error
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _inflated(packed: bytes) -> bytes:
    """Bounded, because what comes from elsewhere may swell to anything."""
    inflating = zlib.decompressobj()
    words = inflating.decompress(packed, _MAX_PACKED)
    if not inflating.eof:
        raise ValueError("they are cut short, or too many")
    return words


def chained(chain: bytes, tokens: Iterable[int]) -> bytes:
    """What names all committed tokens up to and with these (invariant 5)."""
    return hashlib.blake2b(array("I", tokens).tobytes(), digest_size=_CHAIN_BYTES, key=chain).digest()


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def unpack(packed: bytes) -> Any:  # noqa: ANN401 - what was packed
    return msgpack.unpackb(packed)


def pack_about(session: Session) -> bytes:
    """What is asked of a session only together with all of it."""
    return pack(
        {
            "metadata": dict(session.metadata),
            "vocabulary": session.vocabulary,
            "policies": pack_policies(session.policies),
        }
    )


def pack_policies(policies: Policies) -> list[object]:
    return [policies.on_conflict.value, policies.cancel_unwatched, policies.retention.each]


def unpack_policies(about: Any) -> Policies:  # noqa: ANN401 - what was packed
    told = about.get("policies")
    return (
        Policies()
        if told is None
        else Policies(OnConflict(told[0]), told[1], *(Retention(*each) for each in told[2:3]))
    )


def pack_amounts(amounts: Amounts) -> bytes:
    return pack(amounts.each)


def unpack_amounts(packed: bytes | None) -> Amounts:
    return Amounts() if packed is None else Amounts(*unpack(packed))


def pack_limits(limits: Limits) -> bytes:
    return pack(limits.each)


def unpack_limits(packed: bytes | None) -> Limits:
    return Limits() if packed is None else Limits(*unpack(packed))


def pack_reserve(reserve: Reserve) -> bytes:
    return pack([reserve.held.each, reserve.took.each])


def unpack_reserve(packed: bytes | None) -> Reserve:
    if packed is None:
        return Reserve()
    held, took, *_ = unpack(packed)
    return Reserve(Amounts(*held), Amounts(*took))


def pack_happening(happening: Happening) -> bytes:
    told = happening
    return pack([told.what, told.branch, told.turn, told.status, told.stop, told.version])


def unpack_happening(packed: bytes) -> Happening:
    what, branch, turn, status, stop, version, *_ = unpack(packed)
    return Happening(
        What(what),
        branch,
        None if turn is None else TurnId(turn),
        status and TurnStatus(status),
        stop and StopReason(stop),
        version,
    )


def pack_item(item: Item) -> bytes:
    told: list[object] = [item.role, item.content]
    if item.calls or item.call:
        told += [[_call(call) for call in item.calls], item.call, item.name]
    return pack(told)


def unpack_item(packed: bytes) -> Item:
    role, content, *more = unpack(packed)
    if not more:
        return Item(role, content)
    calls, call, name = more
    return Item(role, content, tuple(ToolCall(*each) for each in calls), call, name)


def pack_call(call: ToolCall) -> bytes:
    return pack(_call(call))


def unpack_call(packed: bytes) -> ToolCall:
    return ToolCall(*unpack(packed))


def _call(call: ToolCall) -> list[str]:
    return [call.id, call.name, call.arguments]


def pack_asked(asked: Asked) -> bytes:
    """All but its items, which have rows of their own, before those of the answer."""
    return pack(
        {
            "sampling": sampling_bytes(asked.sampling),
            "max_tokens_given": asked.max_tokens_given,
            "deadline_s": asked.deadline_s,
            "expected_head": asked.expected_head,
            "head_is_expected": asked.head_is_expected,
            "on_conflict": asked.on_conflict and asked.on_conflict.value,
            "cancel_unwatched": asked.cancel_unwatched,
            "items": len(asked.items),
            "toolbox": asked.toolbox.tools and _pack_toolbox(asked.toolbox),
            "instructions": asked.instructions,
            "memo": asked.memo,
            "retention": None if asked.retention is None else asked.retention.each,
        }
    )


def _pack_toolbox(toolbox: Toolbox) -> dict[str, object]:
    tools = [[tool.name, tool.description, tool.parameters, tool.approval] for tool in toolbox.tools]
    return asdict(toolbox) | {"tools": tools, "choice": toolbox.choice.value}


def unpack_toolbox(packed: bytes) -> Toolbox:
    """Of what was asked."""
    told = unpack(packed).get("toolbox")
    if not told:
        return NO_TOOLS
    tools = tuple(Tool(*each) for each in told["tools"])
    return Toolbox(**(told | {"tools": tools, "choice": ToolChoice(told["choice"])}))


def unpack_asked(packed: bytes, items: tuple[Item, ...]) -> Asked:
    told = unpack(packed)
    return Asked(
        items[: told["items"]],
        sampling_from(told["sampling"]),
        told["max_tokens_given"],
        told["deadline_s"],
        None if told["expected_head"] is None else TurnId(told["expected_head"]),
        told["head_is_expected"],
        told["on_conflict"] and OnConflict(told["on_conflict"]),
        told["cancel_unwatched"],
        unpack_toolbox(packed),
        told.get("instructions"),
        told.get("memo", b""),
        None if told.get("retention") is None else Retention(*told["retention"]),
    )


def unpack_instructions(packed: bytes) -> str | None:
    """Those of a request, without all else that it asked."""
    found: str | None = unpack(packed).get("instructions")
    return found


def pack_ending(ending: Ending, tokens: Sequence[int], events: Sequence[TurnEvent]) -> bytes:
    """With all that the turn gave out, so that its events need no rows any more."""
    error, handoff = ending.error, ending.handoff
    return pack(
        {
            "status": ending.status.value,
            "stop": ending.stop and ending.stop.value,
            "error": error and [error.status.code, error.message, error.field],
            "kept": ending.kept,
            "spent": [ending.spent.prompt, ending.spent.cached, ending.spent.completion],
            "attempts": ending.attempts,
            "boot": ending.boot,
            "handoff": handoff and asdict(handoff),
            "drift": ending.drift,
            "took": ending.took.each,
            "limit": ending.limit and ending.limit.value,
            "sources": ending.sources and astuple(ending.sources),
            "fingerprint": ending.fingerprint,
            "tokens": pack_tokens(tokens),
            "text": "".join(event.text for event in events),
            "bounds": [[len(event.tokens), len(event.text)] for event in events],
            "calls": [_call(call) for call in ending.calls],
            "said": ending.said,
            "retained": ending.retained and astuple(ending.retained),
        }
    )


def unpack_ending(packed: bytes) -> Ending:
    told = {"took": (), "limit": None, "sources": None, "fingerprint": None} | unpack(packed)
    error, handoff, boot = told["error"], told["handoff"], told["boot"]
    if handoff and handoff["prefill_worker"] is not None:
        handoff["prefill_worker"] = WorkerId(handoff["prefill_worker"])
    return Ending(
        TurnStatus(told["status"]),
        told["stop"] and StopReason(told["stop"]),
        error and from_code(error[0], error[1], field=error[2]),
        told["kept"],
        Spent(*told["spent"]),
        told["attempts"],
        None if boot is None else BootId(boot),
        handoff and Handoff(**handoff),
        told["drift"],
        Amounts(*told["took"]),
        told["limit"] and Measure(told["limit"]),
        told["sources"] and _unpack_sources(*told["sources"]),
        told["fingerprint"],
        tuple(ToolCall(*each) for each in told.get("calls", ())),
        told.get("said", ""),
        told.get("retained") and _unpack_retained(*told["retained"]),
    )


def _unpack_retained(
    pause: str, tokens: int, kv_bytes: int, keep_ms: int, refusal: str | None, kept_in: str
) -> Retained:
    return Retained(
        Pause(pause), tokens, kv_bytes, keep_ms, None if refusal is None else Refusal(refusal), KeptIn(kept_in)
    )


def pack_kept(retained: Retained) -> bytes:
    return pack([retained.pause, retained.tokens, retained.kv_bytes, retained.kept_in])


def unpack_kept(packed: bytes, remaining_ms: int) -> Holding:
    pause, tokens, kv_bytes, kept_in, *_ = unpack(packed)
    return Holding(Pause(pause), tokens, kv_bytes, remaining_ms, KeptIn(kept_in))


def _unpack_sources(pool: int, handed_over: int, computed: int, missed: int, why: str | None) -> Sources:
    return Sources(pool, handed_over, computed, missed, None if why is None else Missed(why))


def unpack_events(packed: bytes, after: int) -> tuple[TurnEvent, ...]:
    """The events of a turn that has ended, those whose `seq` is above `after`."""
    told = unpack(packed)
    tokens, text = tuple(unpack_tokens(told["tokens"])), told["text"]
    events, index, place = [], 0, 0
    for seq, (count, characters) in enumerate(told["bounds"], start=1):
        if seq > after:
            events.append(TurnEvent(seq, index, tokens[index : index + count], text[place : place + characters]))
        index, place = index + count, place + characters
    return tuple(events)
