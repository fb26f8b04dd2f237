"""What others hold copies of: a decode worker that dies costs a transfer of pages, and no token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from batonmesh.v1 import inference_pb2, mirror_pb2
from runtime.config import Config, EngineConfig, WorkerConfig
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import continuation
from runtime.ids import WorkerId
from runtime.kv_settings import HandoffConfig
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.mesh.worker import RunningWorker
from runtime.mirroring import MirrorConfig
from runtime.tiering import KvKeepingConfig
from tests.mesh.test_local import PREFILL, PROMPT, TOKENS, Asking, asked, config, expected
from tests.mesh.test_tiers import until

PAGE = 8
LONG = (PROMPT * 5)[:300]
WORKERS = WorkerConfig(name="prefill", role="prefill"), WorkerConfig(name="decode", role="decode", count=2)

Answering = asyncio.Task[tuple[str, inference_pb2.Final]]


def mirrored(state: Path, *workers: WorkerConfig, pages: int = 256, **mirror: object) -> Config:
    settings = MirrorConfig.model_validate({"copies": 1} | mirror)
    engine = EngineConfig(pages=pages, page_tokens=PAGE, step_tokens=32, max_running=8)
    return config(state, workers=workers or WORKERS, kv=KvKeepingConfig(mirror=settings), engine=engine)


def busy(mesh: LocalMesh) -> list[WorkerId]:
    return [name for name, running in mesh.workers.items() if running.engine.load().running]


@asynccontextmanager
async def killing(mesh: LocalMesh, user: Asking, *others: WorkerId) -> AsyncIterator[Answering]:
    """An answer to `LONG`, whose decode worker dies half-way, after these others did."""
    async with asyncio.TaskGroup() as group:
        killed: list[asyncio.Task[None]] = []

        async def kill(victims: tuple[WorkerId, ...]) -> None:
            for victim in victims:
                await mesh.kill(victim)

        def kill_once(text: str) -> None:
            decoding = [name for name in busy(mesh) if name.startswith("decode")]
            if len(text) > 200 and decoding and not killed:
                killed.append(group.create_task(kill((*others, decoding[0]))))

        answer = group.create_task(user.ask(LONG, meanwhile=kill_once))
        yield answer
        await answer
        assert killed


def cached(running: RunningWorker) -> int:
    return running.engine.load().pages.cached


async def mirror_of(user: Asking, worker: WorkerId) -> mirror_pb2.MirrorReport:
    return (await user.workers())[worker].mirror


async def test_after_the_death_of_its_worker_an_answer_goes_on_from_the_pages_of_its_mirror(tmp_path: Path) -> None:
    async with local_mesh(mirrored(tmp_path)) as mesh, asked(mesh) as user:
        async with killing(mesh, user) as answer:
            text, final = await answer
        assert text == expected(LONG)
        assert final.attempts == 2
        assert final.usage.completion_tokens == TOKENS
        told = final.handoff
        assert told.holder == PREFILL
        assert told.restored_tokens >= len(LONG) // PAGE * PAGE, "all of the prompt at the least"
        assert told.restored_tokens % PAGE == 0
        assert told.moved_tokens == 0, "nothing was prefilled again"
        assert told.restore_ms > 0
        mesh.check()


async def test_a_decode_worker_that_holds_the_copies_goes_on_at_once(tmp_path: Path) -> None:
    async with local_mesh(mirrored(tmp_path, on="decode")) as mesh, asked(mesh) as user:
        async with killing(mesh, user) as answer:
            text, final = await answer
        assert (text, final.attempts) == (expected(LONG), 2)
        assert final.handoff.cached_tokens >= len(LONG) // PAGE * PAGE
        assert final.handoff.restored_tokens == 0, "they were there"
        mesh.check()


async def test_without_copies_it_is_prefilled_again(tmp_path: Path) -> None:
    async with local_mesh(mirrored(tmp_path, copies=0)) as mesh, asked(mesh) as user:
        async with killing(mesh, user) as answer:
            text, final = await answer
        assert text == expected(LONG)
        assert (final.handoff.restored_tokens, final.handoff.holder) == (0, "")


async def test_a_holder_that_died_before_costs_no_token_and_nothing_waits_for_it(tmp_path: Path) -> None:
    three = WORKERS[0], WorkerConfig(name="decode", role="decode", count=3)
    async with local_mesh(mirrored(tmp_path, *three)) as mesh, asked(mesh) as user:
        async with killing(mesh, user, PREFILL) as answer:
            text, final = await answer
        assert (text, final.attempts) == (expected(LONG), 2)
        assert final.handoff.wait_ms < 1500
        mesh.check()


async def test_two_copies_are_told_of_and_leave_no_faster_than_they_may(tmp_path: Path) -> None:
    """One page has 64 bytes here."""
    four = WORKERS[0], WorkerConfig(name="decode", role="decode", count=3)
    settings = mirrored(tmp_path, *four, copies=2, write_mib_s=0.004, on="decode")
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        loop = asyncio.get_running_loop()
        began = loop.time()
        text, _ = await user.ask(LONG)
        assert text == expected(LONG)
        pages = (len(LONG) + TOKENS - 1) // PAGE
        holding = [running for name, running in mesh.workers.items() if name.startswith("decode")]
        await until(lambda: sum(running.engine.load().pages.cached >= pages for running in holding) == 3)
        least = (2 * pages - 3 * 16) * 64 / (0.004 * (1 << 20))
        assert loop.time() - began >= least, "but for a batch to each holder, and the last one"
        async with asyncio.timeout(30):
            reports = [await mirror_of(user, WorkerId(f"decode-{number}")) for number in range(3)]
            while sum(report.bytes for report in reports) < 2 * pages * 64:
                await asyncio.sleep(0.1)
                reports = [await mirror_of(user, WorkerId(f"decode-{number}")) for number in range(3)]
        assert sum(report.pages for report in reports) == 2 * pages
        assert [(report.waiting, report.dropped, report.failures) for report in reports] == [(0, 0, 0)] * 3
        mesh.check()


async def test_the_next_turn_takes_what_it_lacks_from_whoever_holds_it(tmp_path: Path) -> None:
    """Its worker of the turn before is gone, and the one that is left had no part in that."""
    fixed = HandoffConfig(remote_min_tokens=1000)
    settings = mirrored(tmp_path).model_copy(update={"handoff": fixed})
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await user.ask(LONG)
        (decode,) = [name for name, each in mesh.workers.items() if name.startswith("decode") and cached(each)]
        pages = (len(LONG) + TOKENS - 1) // PAGE
        await until(lambda: cached(mesh.workers[PREFILL]) >= pages)
        await asyncio.sleep(1.0)  # until the gateway's directory knows
        await mesh.kill(decode)
        following = [*LONG, *continuation(LONG, Sampling(max_tokens=TOKENS)), *PROMPT[:20]]
        text, final = await user.ask(following)
        assert text == expected(following)
        assert (final.handoff.holder, final.handoff.restored_tokens) == (PREFILL, pages * PAGE)
        assert final.usage.cached_tokens == pages * PAGE, "nobody computed it"
        mesh.check()
