"""The probe stands where a gateway would, times a real decode worker, and tells what moved."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.cli.bench.probe import Probe
from runtime.clients.channels import Channels
from runtime.clients.peers import GrpcPeers
from runtime.domain.messages import PrefillCandidate
from runtime.engine.simulated import VOCAB
from runtime.errors import ContextExceeded
from runtime.ids import BootId, GatewayId, WorkerId
from tests.cli.conftest import Served

TOKENS = 100


@asynccontextmanager
async def probing(served: Served) -> AsyncIterator[tuple[Probe, tuple[PrefillCandidate, ...]]]:
    workers = {name: running.worker for name, running in served.mesh.workers.items()}
    prefill = workers[WorkerId("prefill-0")]
    candidates = (PrefillCandidate(prefill.id, prefill.boot, prefill.address),)
    decode = workers[WorkerId("decode-0")].address
    async with Channels() as channels, GrpcPeers(channels, GatewayId("probe")).decode(decode).attach() as stream:
        probe = Probe(stream, VOCAB)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(probe.run())
            await probe.wait_ready()
            yield probe, candidates
            running.cancel()


async def test_the_arms_differ_in_where_the_prefill_ran(served: Served) -> None:
    async with probing(served) as (probe, there):
        local, split = await probe.measure(TOKENS, ()), await probe.measure(TOKENS, there)
    assert (local.handoff.moved_tokens, local.handoff.cached_tokens) == (0, 0)
    assert (split.handoff.moved_tokens, split.handoff.cached_tokens) == (TOKENS - 1, 0)
    for timing in (local, split):
        assert 0 < timing.step_s < timing.first_s
        assert timing.waited_s == 0


async def test_what_a_neighbour_waits_is_counted_while_there_is_one(served: Served) -> None:
    async with probing(served) as (probe, _):
        async with probe.neighbour():
            beside = await probe.measure(3000, ())
        alone = await probe.measure(TOKENS, ())
    assert beside.waited_s > 0
    assert alone.waited_s == 0


async def test_a_request_that_fails_is_raised(served: Served) -> None:
    async with probing(served) as (probe, _):
        with pytest.raises(ContextExceeded):
            await probe.measure(5000, ())


async def test_a_prefill_worker_that_is_gone_costs_a_local_prefill(served: Served) -> None:
    gone = (PrefillCandidate(WorkerId("gone"), BootId("gone"), "127.0.0.1:1"),)
    async with probing(served) as (probe, _):
        timing = await probe.measure(TOKENS, gone)
    assert timing.handoff.moved_tokens == 0
