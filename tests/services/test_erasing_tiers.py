"""A session that is erased while it is decoded, in a mesh that keeps pages behind its pools: no tier, no file and no
object has anything of it, and nothing of it comes late. The same looks find all of it before."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from batonmesh.v1 import common_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.domain.pages import extend_chain
from runtime.engine.simulated import SimulatedTokenizer
from runtime.errors import DataCorrupt
from runtime.ids import PageId
from runtime.kv.tiers.sealing import unseal
from runtime.kv.tiers.tiers import PageTiers
from runtime.mesh.local import LocalMesh, local_mesh
from runtime.mesh.tenants import open_tenants
from runtime.store.sealing import MasterKey
from runtime.tiering import LOCAL, KvKeepingConfig, TiersConfig
from tests.services.session_mesh import User, config, expected, user
from tests.services.test_erasing import CANARY, data_key, decoding, refused, resident
from tests.store.scanning import files, holding, scan

NEXT = common_pb2.Sampling(max_tokens=12, temperature=0)


@asynccontextmanager
async def tiered_mesh(state: Path, base_ms: float = 2.0) -> AsyncIterator[tuple[LocalMesh, User]]:
    tiers = TiersConfig(host_mib=4, cold=LOCAL, least_tokens=16)
    settings = config(state, base_ms=base_ms).model_copy(update={"kv": KvKeepingConfig(tiers=tiers)})
    async with local_mesh(settings) as mesh, user(mesh.grpc) as somebody:
        yield mesh, somebody


def salt(mesh: LocalMesh) -> bytes:
    (secret,) = open_tenants(mesh.config.state, ("default",)).values()
    return secret


def chain(mesh: LocalMesh, first: str, second: str, answer: list[int]) -> list[PageId]:
    """The ids of the pages of a conversation whose second answer is not over."""
    tokenizer = SimulatedTokenizer()
    said: list[dict[str, object]] = [{"role": "user", "content": text} for text in (first, second)]
    tokens = tokenizer.render_chat(said[:1]) + expected(first)[0] + tokenizer.render_delta([], said[1:]) + answer
    spec = next(iter(mesh.workers.values())).engine.spec
    return extend_chain([], salt(mesh), tokens, spec.page_tokens, spec.kv_fingerprint)


def arenas(mesh: LocalMesh) -> list[bytes]:
    """All bytes of the host memory of each worker."""
    tiers = [worker.tiers for worker in mesh.workers.values()]
    return [bytes(each._host._memory) for each in tiers if isinstance(each, PageTiers) and each._host is not None]


def opened(file: Path, ids: list[PageId], secret: bytes) -> bytes:
    """A file as it is, and what one of these pages sealed in it is."""
    content = file.read_bytes()
    for page in ids:
        if file.name.startswith(page.hex()):
            try:
                return content + unseal(content, page, str(file.relative_to(file.parents[2])), secret)
            except DataCorrupt:
                return content
    return content


def places(mesh: LocalMesh, ids: list[PageId]) -> dict[str, set[PageId]]:
    """Where each page is: by the name of a file, in a file that was opened, in host memory, in a pool."""
    found: dict[str, set[PageId]] = {"names": set(), "files": set(), "memory": set(), "pools": set()}
    for file in files(mesh.config.state):
        content = opened(file, ids, salt(mesh))
        found["names"] |= {page for page in ids if page.hex() in file.name}
        found["files"] |= {page for page in ids if bytes(page) in content}
    for memory in arenas(mesh):
        found["memory"] |= {page for page in ids if bytes(page) in memory}
    most = max(resident(mesh, ids).values(), default=0)
    found["pools"] |= set(ids[:most])
    return {place: pages for place, pages in found.items() if pages}


async def until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, "it did not come true"
        await asyncio.sleep(0.02)


async def test_a_session_erased_while_it_decodes_is_in_no_tier(tmp_path: Path) -> None:
    """Invariant 13."""
    state = tmp_path / "state"
    async with tiered_mesh(state) as (mesh, somebody):
        session = await somebody.create()
        await somebody.run(session, CANARY)
        seen, reading = await decoding(somebody, session)
        master = MasterKey((state / "sessions.key").read_bytes())
        key, wrapped = data_key(state, master, session)
        early = chain(mesh, CANARY, CANARY, list(seen.tokens))
        await until(lambda: [len(pages) > 4 for pages in places(mesh, early).values()] == [True] * 4)
        assert {"items.payload", "segments.tokens", "turns.prompt"} <= scan(state, CANARY, master)

        erased = await somebody.stub.Erase(pb.EraseRequest(session=session), timeout=20)

        assert await refused(reading) is grpc.StatusCode.NOT_FOUND
        ids = chain(mesh, CANARY, CANARY, list(seen.tokens))
        assert len(ids) >= len(early)
        assert places(mesh, ids) == {}
        assert scan(state, CANARY, master) == set()
        assert holding(state, key) | holding(state, wrapped) == set()
        assert [file.name for file in files(state / "kv") if file.name != "clock"] == [], "nor of what was not seen"
        assert not any(any(memory) for memory in arenas(mesh))
        assert all(each.done for each in erased.receipts)
        assert sum(each.erased for each in erased.receipts[1:]) > 2 * len(early), "of pools, host memory and store"
        await asyncio.sleep(0.5)
        assert places(mesh, ids) == {}
        mesh.check()
    async with tiered_mesh(state) as (mesh, _):
        await asyncio.sleep(0.2)
        assert places(mesh, ids) == {}


async def test_what_another_session_has_used_stays_in_the_tiers_and_is_counted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with tiered_mesh(state, base_ms=0.5) as (mesh, somebody):
        session, other = await somebody.create(), await somebody.create()
        for each in (session, other):
            await somebody.run(each, CANARY, sampling=NEXT)
        await somebody.run(session, "And then?", sampling=NEXT)
        both = chain(mesh, CANARY, "", [])[:6]
        mine = chain(mesh, CANARY, "And then?", expected(CANARY, "And then?")[1])[:-1]
        await until(lambda: places(mesh, mine).get("names") == set(mine) and marked(state, both) == 2)
        erased = await somebody.stub.Erase(pb.EraseRequest(session=session), timeout=20)
        found = places(mesh, mine)
        assert found.keys() == {"names", "files", "memory", "pools"}
        assert all(set(both) <= pages < set(mine) for pages in found.values())
        assert sum(each.shared for each in erased.receipts) >= 3 * len(both)
        assert marked(state, both) == 1
        await somebody.stub.Erase(pb.EraseRequest(session=other), timeout=20)
        assert places(mesh, mine) == {}


def marked(state: Path, ids: list[PageId]) -> int:
    """How many sessions have used all of these pages, by what the store says."""
    marks = [file.name for file in files(state / "kv") if "." in file.name]
    return min(sum(name.startswith(page.hex()) for name in marks) for page in ids)
