"""Chat completions on a session: a header names it, and the messages are what is new. The mesh keeps the rest.

A turn commits once however often it is sent: under one `Idempotency-Key`, and when OpenAI's client tries again by
itself, which it marks.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from starlette.datastructures import Headers

from runtime.domain.generation import Delta
from runtime.domain.sequence import FinishReason, Sampled
from runtime.domain.sessions import MAIN, Asked, Ending, Key, StopReason, TurnRecord, check_items
from runtime.errors import BatonError, Cancelled, InvalidArgument, NotSupported
from runtime.ids import SessionId, TurnId
from runtime.roles.calls import CallReader
from runtime.roles.sessions import SessionRole
from runtime.services.access import calling
from runtime.services.banning import banned_spellings
from runtime.services.openai.accounts import spent_of
from runtime.services.openai.answers import ChatAnswer, Json, Tally
from runtime.services.openai.body import parse_body
from runtime.services.openai.exchange import Exchange
from runtime.services.openai.generating import Generating, gather, stream
from runtime.services.openai.prompts import ShownPrompt
from runtime.services.openai.retrying import KEY_HEADER, MAX_HEADER, SESSION_HEADER, retried_key
from runtime.services.openai.schema import ChatRequest
from runtime.services.openai.settings import OpenAiSettings
from runtime.services.openai.spelling import Spelling
from runtime.services.openai.tokenizing import TokenizingPool

TURN_HEADER = "x-baton-turn"
HEAD_HEADER = "x-baton-expected-head"
_NEW = "new"
_NONE = "none"
# More than any model's context, so that an answer without a bound of its own is bounded by that.
UNBOUNDED = 2**31 - 1


class Conversing(Generating):
    """Requests without the header are answered as ever."""

    def __init__(self, sessions: SessionRole, settings: OpenAiSettings, pool: TokenizingPool) -> None:
        super().__init__(sessions.gateway, settings, pool, ChatRequest, ChatAnswer)
        self._sessions = sessions

    async def _respond(self, exchange: Exchange, body: bytes, ends: float) -> None:
        headers = Headers(scope=exchange.scope)
        named = headers.get(SESSION_HEADER)
        if named is None:
            await super()._respond(exchange, body, ends)
            return
        try:
            asked = parse_body(ChatRequest, body)
            wanted = _expecting(headers.get(HEAD_HEADER), self._wanted(asked, ends))
            key = retried_key(exchange.scope, body)
            turn = await self._open(named, asked.model, wanted, key)
            exchange.headers[SESSION_HEADER] = turn.session
            exchange.headers[TURN_HEADER] = turn.id
            with self._sessions.watching(turn):
                await self._tell(exchange, asked, turn)
        except BatonError as error:
            await exchange.fail(error, _called)

    async def _tell(self, exchange: Exchange, asked: ChatRequest, turn: TurnRecord) -> None:
        served = self._gateway.served(turn.model)
        answers = self._begin(asked, served, ShownPrompt((), Spelling(served.tokenizer)))
        toolbox = turn.asked.toolbox
        if toolbox.callable and served.tokenizer.call_form is not None:
            answers[0].read(CallReader(served.tokenizer, toolbox, turn.id))
        tally = SessionTally()
        deltas = _deltas(self._sessions, turn, tally)
        if asked.stream:
            # What is durable together is one delta, so that nothing waits for company here.
            await stream(exchange, answers, [tally], deltas, lambda: False, usage_asked=asked.usage_asked)
        else:
            await exchange.respond(200, await gather(answers, [tally], deltas, lambda: 0), {})

    def _wanted(self, asked: ChatRequest, ends: float) -> Asked:
        """Raises `InvalidArgument` naming what a session does not take."""
        if asked.choices_asked > 1:
            raise InvalidArgument("n must be 1 in a session", field="n")
        if asked.logprobs_asked is not None:
            raise NotSupported("logprobs are not served in a session", field="logprobs")
        for field in ("prompt_logprobs", "priority"):
            if getattr(asked, field) is not None:
                raise NotSupported(f"{field} is not served in a session", field=field)
        items = tuple(message.item for message in asked.messages)
        check_items(items)
        sampling = asked.sampling(UNBOUNDED, self._gateway.fresh_seed())
        if asked.bad_words:
            tokenizer = self._gateway.served(asked.model).tokenizer
            banned = sampling.banned_tokens + banned_spellings(asked.bad_words, tokenizer)
            sampling = replace(sampling, banned_tokens=banned)
        sampling.validate()
        remaining = ends - asyncio.get_running_loop().time()
        return Asked(items, sampling, asked.tokens_asked is not None, remaining, toolbox=asked.toolbox)

    async def _open(self, named: str, model: str, wanted: Asked, key: Key | None) -> TurnRecord:
        tenant = calling().tenant or self._settings.tenant
        if named == _NEW:
            return await self._sessions.open_alone(tenant, model, wanted, key, hidden=False)
        found, _ = await self._sessions.store.get(tenant, SessionId(named[:MAX_HEADER]))
        if found.model != model:
            raise InvalidArgument(f"the session is one of model {found.model!r}", field="model")
        return (await self._sessions.open(tenant, found.id, MAIN, wanted, key))[0]


class SessionTally(Tally):
    """Of a turn, whose store knows what it took."""

    def __init__(self) -> None:
        super().__init__(0)

    def end(self, ending: Ending) -> None:
        self._prompt = ending.spent.prompt
        self._ending = ending

    def usage(self, *others: Tally) -> Json:
        told = super().usage(*others)
        return told | {"prompt_tokens_details": {"cached_tokens": self._ending.spent.cached}}

    def baton(self) -> Json:
        return super().baton() | spent_of(self._ending)


def _expecting(head: str | None, wanted: Asked) -> Asked:
    """Only after the turn that the header names; `none` is a session's beginning."""
    if head is None:
        return wanted
    return replace(wanted, expected_head=None if head == _NONE else TurnId(head), head_is_expected=True)


async def _deltas(sessions: SessionRole, turn: TurnRecord, tally: SessionTally) -> AsyncIterator[tuple[int, Delta]]:
    """A turn's events as the deltas of a lone choice. Raises how the turn failed."""
    index = 0
    async for progress in sessions.watch(turn, 0):
        ending = progress.turn.ending
        tokens = tuple(Sampled(token) for event in progress.events for token in event.tokens)
        text = "".join(event.text for event in progress.events)
        if ending is None:
            yield 0, Delta(index, tokens, text)
        else:
            finish = _finish(ending)
            tally.end(ending)
            yield 0, Delta(index, tokens, text, finish, ending.handoff, max(ending.attempts, 1))
        index += len(tokens)


def _called(field: str) -> str:
    """What a request here calls a field of a turn."""
    if field in ("session", "on_conflict", "rerender") or field.startswith("limits."):
        return SESSION_HEADER
    headers = {"idempotency_key": KEY_HEADER, "expected_head": HEAD_HEADER}
    return headers.get(field) or field.replace("items", "messages", 1)


def _finish(ending: Ending) -> FinishReason:
    """Raises how a turn that did not commit ended."""
    if ending.error is not None:
        raise ending.error
    if ending.stop is None:
        raise Cancelled("the turn was cancelled")
    cut = ending.stop in (StopReason.LENGTH, StopReason.BUDGET)
    return FinishReason.LENGTH if cut else FinishReason.STOP
