"""The JSON of responses, conversations and what was said in them, as OpenAI documents it. Pure functions of turns.

Beyond OpenAI's shape a response that has ended has a `baton` object: `attempts`, `handoff` (how the prompt got its KV)
and `drift_tokens`, how many committed tokens a rendering anew did not repeat.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from runtime.domain.sessions import Ending, Item, Said, Session, StopReason, TurnRecord, TurnStatus
from runtime.errors import BatonError
from runtime.ids import TurnId
from runtime.services.openai.responses.ids import conversation_id, item_id, response_id
from runtime.services.openai.responses.memo import unpack_memo

Json = dict[str, Any]
# What a response's error may be called; what is a client's doing was refused before there was a response.
_ERRORS = {"exhausted": "rate_limit_exceeded", "invalid": "invalid_prompt", "context": "invalid_prompt"}


def response(turn: TurnRecord, status: str, text: str = "", ending: Ending | None = None) -> Json:
    """`text` is all that was answered so far."""
    asked, memo = turn.asked, unpack_memo(turn.asked.memo)
    conversation = {"id": conversation_id(turn.session)} if memo.conversation else None
    return {
        "id": response_id(turn.id),
        "object": "response",
        "created_at": memo.created,
        "status": status,
        "background": memo.background,
        "error": None if ending is None or ending.error is None else _error(ending.error),
        "incomplete_details": _incomplete(ending) if status == "incomplete" else None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.sampling.max_tokens if asked.max_tokens_given else None,
        "max_tool_calls": None,
        "model": turn.model,
        "output": output(turn, text, status),
        "parallel_tool_calls": memo.parallel_tool_calls,
        "previous_response_id": memo.previous,
        "conversation": conversation,
        "prompt_cache_key": memo.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": memo.safety_identifier,
        "service_tier": "default",
        "store": memo.stored,
        "temperature": asked.sampling.temperature,
        "text": {"format": memo.text, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": asked.sampling.top_p,
        "truncation": "disabled",
        "usage": None if ending is None else _usage(ending),
        "user": memo.user,
        "metadata": memo.metadata,
    } | ({} if ending is None else {"baton": _baton(ending)})


def status_of(turn: TurnRecord, ending: Ending | None) -> str:
    if ending is None:
        return "queued" if turn.status is TurnStatus.QUEUED else "in_progress"
    match ending.status:
        case TurnStatus.COMMITTED:
            return "completed" if ending.stop is StopReason.END_TURN else "incomplete"
        case TurnStatus.CANCELLED:
            return "cancelled"
        case _:
            return "failed"


def output(turn: TurnRecord, text: str, status: str) -> list[Json]:
    """What a response gave out: the one place that makes items of an answer."""
    if status == "completed" or text:
        return [message(turn, text, "completed" if status == "completed" else _unfinished(status))]
    return []


def _unfinished(status: str) -> str:
    return "in_progress" if status in ("queued", "in_progress") else "incomplete"


def message(turn: TurnRecord, text: str | None, status: str) -> Json:
    """An answer's message; without a part while there is no `text` yet."""
    return {
        "id": answer_id(turn),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [] if text is None else [part(text)],
    }


def answer_id(turn: TurnRecord) -> str:
    """The answer comes after what was asked."""
    return item_id(turn.id, len(turn.asked.items))


def part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def item(turn: TurnId, number: int, said: Item) -> Json:
    """One that is there for ever."""
    of_assistant = said.role == "assistant"
    content = part(said.content) if of_assistant else {"type": "input_text", "text": said.content}
    return {
        "id": item_id(turn, number),
        "type": "message",
        "role": said.role,
        "status": "completed",
        "content": [content],
    }


def listed(items: Sequence[Json], *, more: bool = False) -> Json:
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": list(items), "first_id": first, "last_id": last, "has_more": more}


def page(said: Sequence[Said], limit: int) -> Json:
    """Of one more than `limit`, if there are so many."""
    return listed([item(each.turn, each.number, each.item) for each in said[:limit]], more=len(said) > limit)


def conversation(session: Session) -> Json:
    return {
        "id": conversation_id(session.id),
        "object": "conversation",
        "created_at": session.created_ms // 1000,
        "metadata": dict(session.metadata),
    }


def _usage(ending: Ending) -> Json:
    spent = ending.spent
    return {
        "input_tokens": spent.prompt,
        "input_tokens_details": {"cached_tokens": spent.cached, "cache_write_tokens": 0},
        "output_tokens": spent.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent.prompt + spent.completion,
    }


def _error(error: BatonError) -> Json:
    return {"code": _ERRORS.get(error.status.code, "server_error"), "message": error.message}


def _incomplete(ending: Ending | None) -> Json:
    cut = ending is not None and ending.stop in (StopReason.LENGTH, StopReason.BUDGET)
    return {"reason": "max_output_tokens" if cut else None}


def _baton(ending: Ending) -> Json:
    handoff = None if ending.handoff is None else asdict(ending.handoff)
    return {"attempts": ending.attempts, "handoff": handoff, "drift_tokens": ending.drift}
