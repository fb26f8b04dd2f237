"""A mesh whose pages are kept in a bucket of a real S3 server: found again after a restart, and missed without harm."""

import asyncio
import signal
import time
from contextlib import suppress
from pathlib import Path

from runtime.kv.tiers.objects import open_objects
from runtime.mesh.local import local_mesh
from tests.kv.tiers.conftest import S3Server
from tests.mesh.test_local import DECODE_0, asked, expected
from tests.mesh.test_tiers import OTHER, PAGE, STORED, kept, tiers_of


async def test_a_restart_finds_the_pages_in_the_bucket_and_its_death_costs_computing(
    tmp_path: Path, s3: S3Server
) -> None:
    bucket = s3.bucket()
    settings = kept(tmp_path, cold=bucket, patience_s=2.0)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        assert (await user.ask())[0] == expected()
        await until_stored(bucket, STORED // PAGE)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        text, final = await user.ask()
        assert (text, final.handoff.cold_tokens) == (expected(), STORED)
        mesh.check()
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        s3.kill()
        text, final = await user.ask()
        assert (text, final.handoff.cold_tokens) == (expected(), 0)
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.failures["reading"] > 0)
        assert (await user.ask(OTHER))[0] == expected(OTHER)
        mesh.check()


async def test_a_bucket_that_hangs_delays_an_answer_by_its_patience_and_no_more(tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.bucket()
    settings = kept(tmp_path, cold=bucket, patience_s=1.0)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await user.ask()
        await until_stored(bucket, STORED // PAGE)
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        s3.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            text, final = await user.ask()
            assert (text, final.handoff.cold_tokens) == (expected(), 0)
            assert time.monotonic() - began < 20
            await tiers_of(mesh, user, DECODE_0, lambda tier: tier.trouble != "")
        finally:
            s3.process.send_signal(signal.SIGCONT)


async def test_a_full_disk_costs_no_request(tmp_path: Path, tiny_disk: Path) -> None:
    settings = kept(tmp_path, cold=str(tiny_disk / "pages"))
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        assert (await user.ask())[0] == expected()
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        with (tiny_disk / "filling").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert (await user.ask(OTHER))[0] == expected(OTHER)
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.trouble.startswith("writing: "))
        assert (await user.ask(OTHER[::-1]))[0] == expected(OTHER[::-1])
        mesh.check()
    async with local_mesh(settings) as mesh, asked(mesh) as user:
        await tiers_of(mesh, user, DECODE_0, lambda tier: tier.pages >= STORED // PAGE)
        text, final = await user.ask()
        assert (text, final.handoff.cold_tokens) == (expected(), STORED), "what is there is read as before"
        assert (await user.ask(OTHER))[0] == expected(OTHER)


async def until_stored(bucket: str, pages: int) -> None:
    store, ends = open_objects(bucket, 20.0), time.monotonic() + 60
    while (
        sum("-" in each.name.rpartition("/")[2] for each in await asyncio.to_thread(lambda: list(store.list()))) < pages
    ):
        assert time.monotonic() < ends, "it was not written"
        await asyncio.sleep(0.1)
