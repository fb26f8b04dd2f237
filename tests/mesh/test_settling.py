"""A controller that dies and comes back under requests: nobody is forgotten, and who died meanwhile is, in the end."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from batonmesh import AsyncClient
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, SimulatedConfig, TimingConfig
from runtime.ids import BootId, WorkerId
from runtime.kv_settings import HandoffConfig
from runtime.mesh.controller import RunningController, controller_process
from runtime.mesh.gateway import gateway_process
from runtime.mesh.plan import planned_workers
from runtime.mesh.resident import Resident
from runtime.mesh.tenants import open_tenants
from runtime.mesh.worker import RunningWorker, worker_process

LOCAL = "127.0.0.1"
LEASE_S = 2.0
DOOMED = WorkerId("decode-1")
PROMPT = list(b"A prompt of the usual kind, of more than sixteen tokens.")


def config(state: Path) -> Config:
    return Config(
        mesh=MeshConfig(name="settling", state=state),
        model=ModelConfig(name="simulated", simulated=SimulatedConfig()),
        engine=EngineConfig(pages=256, page_tokens=8),
        handoff=HandoffConfig(remote_min_tokens=16),
        timing=TimingConfig(lease_s=LEASE_S),
    )


async def test_nobody_is_forgotten_while_a_new_controller_settles(tmp_path: Path) -> None:
    settings = config(tmp_path)
    tenants = open_tenants(tmp_path, settings.access.tenants)
    async with AsyncExitStack() as stack:
        first: Resident[RunningController] = Resident(controller_process(settings, 1, LOCAL, 0))
        address = (await first.start()).address
        workers: dict[WorkerId, Resident[RunningWorker]] = {}
        for name in planned_workers(settings):
            process = worker_process(settings, name, BootId(f"boot-{name}"), address, tenants, LOCAL)
            workers[name] = Resident(process)
            await workers[name].start()
            if name != DOOMED:
                stack.push_async_callback(workers[name].stop)
        gateway = await stack.enter_async_context(gateway_process(settings, address, port=0))
        client = await stack.enter_async_context(AsyncClient(f"{LOCAL}:{gateway.port}"))
        await gateway.role.wait_ready()
        seen: list[frozenset[WorkerId]] = []

        def look() -> bool:
            view = gateway.role.view()
            seen.append(frozenset(worker.id for worker in view.workers))
            return view.incarnation == 2 and not view.settling

        await first.abort()
        await workers[DOOMED].abort()  # nobody is there to be told
        port = int(address.rpartition(":")[2])
        await stack.enter_async_context(controller_process(settings, 2, LOCAL, port))
        async with asyncio.timeout(6 * LEASE_S):
            while not look():
                answer = await client.complete("simulated", PROMPT, max_tokens=4, timeout=10)
                assert answer.final.usage.completion_tokens == 4
        assert set(seen[:-1]) == {frozenset(planned_workers(settings))}, "absence removed nobody"
        assert seen[-1] == {"prefill-0", "decode-0"}
