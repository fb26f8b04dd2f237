"""POST /v1/responses: a response is a turn of a session: of a conversation's, of the one that it goes on from, or of
one that is made for it.

To go on from a response whose branch has moved on is a fork at its turn, and from one of a conversation it always is:
so a conversation has only what was said in it.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace

from runtime.domain.generation import Delta, Handoffs
from runtime.domain.sequence import FinishReason
from runtime.domain.sessions import (
    MAIN,
    Asked,
    Ending,
    Key,
    Progress,
    Spent,
    StopReason,
    TurnEvent,
    TurnRecord,
    TurnStatus,
    check_items,
    check_metadata,
    check_text,
)
from runtime.errors import BatonError, FailedPrecondition, InvalidArgument, NotSupported
from runtime.ids import SessionId, TenantId, TurnId
from runtime.roles.sessions import SessionRole
from runtime.services.access import calling
from runtime.services.banning import banned_spellings
from runtime.services.openai.answers import ChatAnswer
from runtime.services.openai.body import parse_body
from runtime.services.openai.conversing import TURN_HEADER, UNBOUNDED
from runtime.services.openai.exchange import Exchange
from runtime.services.openai.generating import Generating
from runtime.services.openai.responses.finding import conversation_named, response_named
from runtime.services.openai.responses.memo import memo_of
from runtime.services.openai.responses.objects import response, status_of
from runtime.services.openai.responses.schema import ResponseRequest
from runtime.services.openai.responses.telling import respond, stream, whole
from runtime.services.openai.retrying import SESSION_HEADER, retried_key
from runtime.services.openai.settings import OpenAiSettings
from runtime.services.openai.tokenizing import TokenizingPool


class CreatingResponses(Generating):
    def __init__(self, sessions: SessionRole, settings: OpenAiSettings, pool: TokenizingPool) -> None:
        super().__init__(sessions.gateway, settings, pool, ResponseRequest, ChatAnswer)
        self._sessions = sessions

    async def _respond(self, exchange: Exchange, body: bytes, ends: float) -> None:
        called: Callable[[str], str] = str
        try:
            asked = parse_body(ResponseRequest, body)
            called = asked.called
            wanted = self._wanted(asked, ends)
            if asked.store is False:
                await self._forgotten(exchange, asked, wanted, ends)
                return
            turn = await self._open(asked, wanted, retried_key(exchange.scope, body))
            exchange.headers[SESSION_HEADER] = turn.session
            exchange.headers[TURN_HEADER] = turn.id
            if asked.background and not asked.stream:
                await respond(exchange, response(turn, status_of(turn, turn.ending)))
                return
            with self._sessions.watching(turn):
                await self._tell(exchange, asked, turn, self._sessions.watch(turn, 0))
        except BatonError as error:
            await exchange.fail(error, called)

    def _wanted(self, asked: ResponseRequest, ends: float) -> Asked:
        """Raises `InvalidArgument` naming the first field at fault."""
        _check(asked)
        sampling = asked.sampling(UNBOUNDED, self._gateway.fresh_seed())
        if asked.bad_words:
            tokenizer = self._gateway.served(asked.model).tokenizer
            banned = sampling.banned_tokens + banned_spellings(asked.bad_words, tokenizer)
            sampling = replace(sampling, banned_tokens=banned)
        sampling.validate()
        return Asked(
            asked.items,
            sampling,
            asked.tokens_asked is not None,
            ends - asyncio.get_running_loop().time(),
            toolbox=asked.toolbox,
            instructions=asked.instructions,
            memo=memo_of(asked, int(time.time())).pack(),
        )

    @property
    def _tenant(self) -> TenantId:
        return calling().tenant or self._settings.tenant

    async def _open(self, asked: ResponseRequest, wanted: Asked, key: Key | None) -> TurnRecord:
        if asked.previous_response_id is not None:
            return await self._open_after(asked, asked.previous_response_id, wanted, key)
        if asked.conversation is None:
            return await self._sessions.open_alone(self._tenant, asked.model, wanted, key)
        found = await conversation_named(self._sessions, self._tenant, asked.conversation, "conversation")
        _check_model(found.model, asked)
        return (await self._sessions.open(self._tenant, found.id, MAIN, wanted, key))[0]

    async def _open_after(self, asked: ResponseRequest, named: str, wanted: Asked, key: Key | None) -> TurnRecord:
        store, tenant = self._sessions.store, self._tenant
        previous = await response_named(self._sessions, tenant, named, "previous_response_id")
        _check_previous(previous)
        _check_model(previous.model, asked)
        if key is not None and (known := await store.known(tenant, previous.session, key)) is not None:
            return known
        session, branches = await store.get(tenant, previous.session)
        free = any((each.name, each.head, each.live) == (previous.branch, previous.id, None) for each in branches)
        if free and session.hidden:
            expecting = replace(wanted, expected_head=previous.id, head_is_expected=True)
            try:
                return (await self._sessions.open(tenant, session.id, previous.branch, expecting, key))[0]
            except FailedPrecondition as error:
                if error.field not in ("expected_head", "on_conflict"):
                    raise
        return await self._open_aside(previous, wanted, key)

    async def _open_aside(self, previous: TurnRecord, wanted: Asked, key: Key | None) -> TurnRecord:
        """On a branch of its own, which goes with a turn that is refused."""
        store, tenant, session = self._sessions.store, previous.tenant, previous.session
        forking = None if key is None else replace(key, name=f"fork/{key.name}")
        fork = await store.fork(tenant, session, previous.branch, previous.id, f"resp-{uuid.uuid4().hex}", forking)
        try:
            return (await self._sessions.open(tenant, session, fork.name, wanted, key))[0]
        except BatonError as error:
            if not error.status.retryable:
                with suppress(BatonError):
                    await store.drop_branch(tenant, session, fork.name)
            raise

    async def _forgotten(self, exchange: Exchange, asked: ResponseRequest, wanted: Asked, ends: float) -> None:
        """Of a response that is not to be stored nothing is."""
        served = self._gateway.served(asked.model)
        generation = await self._generation(asked, served, ends)
        ident, running = TurnId(f"turn-{uuid.uuid4().hex[:16]}"), TurnStatus.RUNNING
        owner = self._gateway.gateway
        turn = TurnRecord(ident, SessionId(""), self._tenant, MAIN, served.spec.name, running, 0, owner, wanted)
        async with self._gateway.open(generation) as deltas:
            await self._tell(exchange, asked, turn, _heard(turn, deltas, len(generation.prompt)))

    async def _tell(
        self, exchange: Exchange, asked: ResponseRequest, turn: TurnRecord, heard: AsyncIterator[Progress]
    ) -> None:
        if asked.stream:
            await stream(exchange, self._gateway, turn, heard)
        else:
            await respond(exchange, await whole(self._gateway, turn, _succeeding(heard)))


async def _succeeding(heard: AsyncIterator[Progress]) -> AsyncIterator[Progress]:
    """Raises how the turn failed."""
    async for progress in heard:
        if progress.turn.ending is not None and progress.turn.ending.error is not None:
            raise progress.turn.ending.error
        yield progress


async def _heard(turn: TurnRecord, deltas: AsyncIterator[Delta], prompt: int) -> AsyncIterator[Progress]:
    """What a turn of no session gives out, as if it were one's."""
    handoffs, given = Handoffs(), 0
    async for delta in deltas:
        handoffs.add(delta)
        given += len(delta.tokens)
        events = (TurnEvent(0, 0, tuple(sampled.token for sampled in delta.tokens), delta.text),)
        if delta.finish is None:
            yield Progress(turn, events)
            continue
        stop = StopReason.LENGTH if delta.finish is FinishReason.LENGTH else StopReason.END_TURN
        spent = Spent(prompt, handoffs.cached_tokens(prompt), given)
        ending = Ending(TurnStatus.COMMITTED, stop, spent=spent, attempts=delta.attempt, handoff=handoffs.newest)
        yield Progress(replace(turn, ending=ending), events)


def _check(asked: ResponseRequest) -> None:
    if asked.items:
        check_items(asked.items)
    elif asked.conversation is None:
        raise InvalidArgument("input is required, and must not be empty", field="input")
    if asked.instructions is not None:
        check_text(asked.instructions, "instructions")
    check_metadata(asked.metadata or {})
    goes_on = "previous_response_id" if asked.previous_response_id is not None else None
    if goes_on and asked.conversation is not None:
        raise InvalidArgument("previous_response_id and conversation are both there: send one", field=goes_on)
    if asked.store is False:
        others = (goes_on, asked.conversation and "conversation", asked.background and "background")
        stored = next((field for field in others if field), None)
        if stored is not None:
            raise NotSupported(f"store must be true with {stored}", field="store")


def _check_model(model: str, asked: ResponseRequest) -> None:
    if model != asked.model:
        raise InvalidArgument(f"what this goes on from is of model {model!r}", field="model")


def _check_previous(previous: TurnRecord) -> None:
    if previous.ending is None:
        raise FailedPrecondition("the previous response has not ended yet", field="previous_response_id")
    if previous.ending.status is not TurnStatus.COMMITTED:
        told = f"the previous response {previous.ending.status}, so there is nothing to go on from"
        raise FailedPrecondition(told, field="previous_response_id")
