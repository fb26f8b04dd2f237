"""The JSON of responses and conversations, as OpenAI documents it. Pure functions of turns and sessions.

Beyond OpenAI's shape both have a `baton` object: a response that has ended says there how its prompt got its KV and
what it took of its session's budget, a conversation what it may spend and has spent.
"""

from runtime.domain.sessions import Ending, Session, StopReason, TurnRecord, TurnStatus
from runtime.errors import BatonError
from runtime.services.openai.accounts import baton_of, budget_of
from runtime.services.openai.responses.given import Given
from runtime.services.openai.responses.ids import conversation_id, response_id
from runtime.services.openai.responses.memo import unpack_memo
from runtime.services.openai.responses.said import Json, answer_id, call, message
from runtime.services.openai.responses.tools import told_tools

# What a response's error may be called; what is a client's doing was refused before there was a response.
_ERRORS = {"exhausted": "rate_limit_exceeded", "invalid": "invalid_prompt", "context": "invalid_prompt"}


def response(turn: TurnRecord, status: str, given: Given | None = None, ending: Ending | None = None) -> Json:
    """`given` is all that was answered so far."""
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
        "output": [] if given is None else output(turn, given, status),
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
        **told_tools(asked.toolbox, memo.strict),
        "top_logprobs": 0,
        "top_p": asked.sampling.top_p,
        "truncation": "disabled",
        "usage": None if ending is None else _usage(ending),
        "user": memo.user,
        "metadata": memo.metadata,
    } | ({} if ending is None else {"baton": baton_of(ending)})


def status_of(turn: TurnRecord, ending: Ending | None) -> str:
    if ending is None:
        return "queued" if turn.status is TurnStatus.QUEUED else "in_progress"
    match ending.status:
        case TurnStatus.COMMITTED:
            whole = ending.stop in (StopReason.END_TURN, StopReason.TOOL_CALLS)
            return "completed" if whole else "incomplete"
        case TurnStatus.CANCELLED:
            return "cancelled"
        case _:
            return "failed"


def output(turn: TurnRecord, given: Given, status: str) -> list[Json]:
    """What a response gave out: the one place that makes items of an answer. One that is complete has something."""
    items = [call(answer_id(turn, number), each) for number, each in enumerate(given.calls)]
    if given.text or (status == "completed" and not items):
        told = "completed" if status == "completed" else _unfinished(status)
        items.insert(given.message_index, message(answer_id(turn), given.text, told))
    return items


def _unfinished(status: str) -> str:
    return "in_progress" if status in ("queued", "in_progress") else "incomplete"


def conversation(session: Session) -> Json:
    return {
        "id": conversation_id(session.id),
        "object": "conversation",
        "created_at": session.created_ms // 1000,
        "metadata": dict(session.metadata),
        "baton": budget_of(session.account),
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
