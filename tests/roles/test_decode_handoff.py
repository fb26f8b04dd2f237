"""A decode worker that has its prompts prefilled elsewhere: tickets, peers that fail, and waiting for room."""

import asyncio

from runtime.domain.messages import CancelAttempt, Output, PrefillDone
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import continuation
from runtime.errors import ResourceExhausted, Unavailable
from tests.roles.one_decode_worker import (
    GREEDY,
    PROMPT,
    SETTINGS,
    SPEC,
    STEP_S,
    TENANT,
    P,
    Q,
    decode_worker,
    frames_of,
    ref,
    start,
    until,
)
from tests.roles.virtual import in_virtual_time, settle

EXPECTED = continuation(PROMPT, GREEDY)
REMOTE = start(candidates=(P, Q))


@in_virtual_time
async def test_a_ticket_names_all_pages_but_the_last_tokens_and_the_call_all_tokens() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        await until(lambda: bool(it.prefill_workers["p"].calls))
        (call,) = it.prefill_workers["p"].calls
        pages = [(page.index, page.valid_tokens) for page in call.ticket.pages]
        assert pages == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 1)]
        assert (call.tenant, call.tokens) == (TENANT, PROMPT)
        ticket = call.ticket
        assert (ticket.boot, ticket.endpoint, ticket.transport) == ("boot", "here", "by hand")
        assert (ticket.fingerprint, ticket.dtype) == (SPEC.kv_fingerprint, SPEC.dtype)
        assert 0 < ticket.remaining_ms <= 60_000


@in_virtual_time
async def test_landed_pages_are_decoded_from_and_the_handoff_says_how_they_came() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        await until(lambda: bool(it.prefill_workers["p"].calls))
        ticket = it.prefill_workers["p"].calls[0].ticket
        for frame in await frames_of(PROMPT):
            it.transport.arrive(ticket, frame)
            await asyncio.sleep(0.01)
        it.prefill_workers["p"].done(PrefillDone(4, 5, 17 * 8))
        await settle()
        it.transport.commit(ticket)
        await until(lambda: len(gateway.tokens) == 8)
        assert gateway.tokens == EXPECTED
        first = gateway.outputs[0]
        assert isinstance(first, Output)
        handoff = first.handoff
        assert handoff is not None
        assert (handoff.cached_tokens, handoff.moved_tokens, handoff.moved_pages) == (0, 17, 5)
        assert (handoff.moved_bytes, handoff.prefill_cached_tokens) == (17 * 8, 4)
        assert (handoff.prefill_worker, handoff.transport) == ("p", "by hand")
        assert 39 < handoff.transfer_ms < 41
        assert it.transport.fenced == []


@in_virtual_time
async def test_a_prompt_that_is_here_already_is_not_asked_for() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(start(turn="before"))
        await until(lambda: len(gateway.tokens) == 8)
        gateway.outputs.clear()
        gateway.link.command(REMOTE)
        await until(lambda: len(gateway.tokens) == 8)
        assert it.prefill_workers["p"].calls == []


@in_virtual_time
async def test_a_peer_that_refuses_is_fenced_and_the_next_is_asked_for_what_is_missing() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        await until(lambda: bool(it.prefill_workers["p"].calls))
        ticket = it.prefill_workers["p"].calls[0].ticket
        frames = await frames_of(PROMPT)
        it.transport.arrive(ticket, frames[0], frames[2])
        it.prefill_workers["p"].fail(ResourceExhausted("full"))
        await until(lambda: bool(it.prefill_workers["q"].calls))
        again = it.prefill_workers["q"].calls[0].ticket
        assert it.transport.fenced == [ticket.transfer]
        assert again.transfer != ticket.transfer
        assert [page.index for page in again.pages] == [1, 3, 4]
        it.transport.arrive(ticket, frames[1])
        it.transport.arrive(again, *frames)
        it.transport.commit(again)
        await until(lambda: len(gateway.tokens) == 8)
        assert gateway.tokens == EXPECTED


@in_virtual_time
async def test_without_any_peer_left_the_worker_computes_what_is_missing() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        for name in "pq":
            await until(lambda name=name: bool(it.prefill_workers[name].calls))  # type: ignore[misc]
            it.prefill_workers[name].fail(Unavailable("gone"))
        await until(lambda: len(gateway.tokens) == 8)
        assert gateway.tokens == EXPECTED


@in_virtual_time
async def test_a_transfer_without_progress_is_given_up_and_each_page_is_progress() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        await until(lambda: bool(it.prefill_workers["p"].calls))
        ticket = it.prefill_workers["p"].calls[0].ticket
        for frame in (await frames_of(PROMPT))[:3]:
            await asyncio.sleep(0.8 * SETTINGS.progress_s)
            it.transport.arrive(ticket, frame)
        assert it.transport.fenced == []
        await asyncio.sleep(SETTINGS.progress_s + 0.1)
        assert it.transport.fenced == [ticket.transfer]
        assert it.prefill_workers["p"].cancelled == 1
        assert len(it.prefill_workers["q"].calls) == 1


@in_virtual_time
async def test_when_only_the_commit_was_lost_nobody_is_asked_again() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        await until(lambda: bool(it.prefill_workers["p"].calls))
        it.transport.arrive(it.prefill_workers["p"].calls[0].ticket, *await frames_of(PROMPT))
        it.prefill_workers["p"].fail(Unavailable("the connection broke"))
        await until(lambda: len(gateway.tokens) == 8)
        assert gateway.tokens == EXPECTED
        assert it.prefill_workers["q"].calls == []


@in_virtual_time
async def test_a_cancel_while_pages_land_stops_the_peer_and_fences_the_transfer() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        await until(lambda: bool(it.prefill_workers["p"].calls))
        ticket = it.prefill_workers["p"].calls[0].ticket
        it.transport.arrive(ticket, (await frames_of(PROMPT))[0])
        gateway.link.command(CancelAttempt(ref()))
        await asyncio.sleep(2 * STEP_S)
        assert it.transport.fenced == [ticket.transfer]
        assert it.prefill_workers["p"].cancelled == 1
        assert it.held() == (0, 0, 0)


@in_virtual_time
async def test_a_peer_that_still_answers_when_its_request_is_over_is_cancelled() -> None:
    async with decode_worker() as it, it.gateway() as gateway:
        gateway.link.command(REMOTE)
        await until(lambda: bool(it.prefill_workers["p"].calls))
        ticket = it.prefill_workers["p"].calls[0].ticket
        it.transport.arrive(ticket, *await frames_of(PROMPT))
        it.transport.commit(ticket)
        await until(lambda: len(gateway.tokens) == 3)
        gateway.link.command(CancelAttempt(ref()))
        await settle()
        assert it.prefill_workers["p"].cancelled == 1
        assert it.transport.fenced == [], "it had committed"


@in_virtual_time
async def test_without_room_requests_wait_in_order_and_each_tries_again_only_when_there_may_be_room() -> None:
    async with decode_worker(pages=8) as it, it.gateway() as gateway:
        # Each wants six pages of the eight.
        for turn in ("one", "two", "three"):
            prompt = tuple(ord(turn[0]) + place for place in range(20))
            gateway.link.command(start(turn=turn, prompt=prompt, candidates=(P,), sampling=Sampling(max_tokens=4)))
        await asyncio.sleep(1)
        assert [ident.split("/")[0] for ident in it.engine.submits()] == ["one", "two", "three"]
        assert len(it.prefill_workers["p"].calls) == 1
        gateway.link.command(CancelAttempt(ref(turn="one")))
        await asyncio.sleep(1)
        assert [ident.split("/")[0] for ident in it.engine.submits()][3:] == ["two"]
        gateway.link.command(CancelAttempt(ref(turn="two")))
        await asyncio.sleep(1)
        assert [ident.split("/")[0] for ident in it.engine.submits()][4:] == ["three"]
        assert len(it.prefill_workers["p"].calls) == 3


@in_virtual_time
async def test_a_request_that_waits_for_room_ends_by_its_deadline() -> None:
    async with decode_worker(pages=8) as it, it.gateway() as gateway:
        gateway.link.command(start(turn="one", prompt=PROMPT, candidates=(P,)))
        gateway.link.command(start(turn="two", prompt=(9,) * 20, candidates=(P,), remaining_ms=1500))
        await asyncio.sleep(2)
        assert gateway.failures == [(1, "deadline")]
        assert it.role.running() == 1
