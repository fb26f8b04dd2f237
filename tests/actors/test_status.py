"""What `baton status` says, asked of a mesh without Ray."""

import asyncio
import json
from pathlib import Path

from typer.testing import CliRunner

import actors.main  # noqa: F401 - it adds the command
from runtime.cli.app import app
from runtime.mesh.local import LocalMesh, local_mesh
from tests.mesh.test_local import TOKENS, asked, config
from tests.mesh.test_mirroring import LONG, PAGE, mirrored
from tests.mesh.test_tiers import kept

_ASK_AGAIN_S = 0.1


async def test_it_says_by_which_path_pages_went_and_why(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh, asked(mesh) as user:
        await user.ask()
        shown = await shown_by(mesh, "pages")
    (line,) = (line for line in shown.splitlines() if line.startswith("pages"))
    assert "prefill-0 -> decode-" in line
    assert "shm" in line
    assert "1 transfers" in line
    assert "one host: its memory could be mapped" in line


async def test_it_says_how_many_tokens_a_pool_holds(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh:
        done = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--target", mesh.grpc, "--json"])
    assert [(row["pages"], row["pool_tokens"]) for row in json.loads(done.stdout)["workers"]] == [(256, 256 * 8)] * 3


async def test_it_says_what_is_kept_behind_whose_pool(tmp_path: Path) -> None:
    async with local_mesh(kept(tmp_path)) as mesh, asked(mesh):
        shown = await shown_by(mesh, "tier")
    assert "decode-0 cold  0 pages, 0 B of 8.0 GiB; 0 written, 0 read" in shown
    assert str(tmp_path / "kv") in shown


async def test_it_says_what_came_of_the_copies_that_others_were_to_hold(tmp_path: Path) -> None:
    async with local_mesh(mirrored(tmp_path)) as mesh, asked(mesh) as user:
        text, _ = await user.ask(LONG)
        assert text
        pages = (len(LONG) + TOKENS - 1) // PAGE
        shown = await shown_by(mesh, "mirror", f"{pages} pages with a mirror")
        done = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--target", mesh.grpc, "--json"])
    lines = [line for line in shown.splitlines() if line.startswith("mirror")]
    assert [line.split()[1] for line in lines] == ["decode-0", "decode-1"], "prefill workers have nothing to copy"
    assert [line.partition("; ")[2] for line in lines] == ["0 wait, 0 were dropped"] * 2
    told = {row["worker"]: row["mirror"] for row in json.loads(done.stdout)["workers"]}
    assert sum(mirror["pages"] for mirror in told.values()) == pages
    assert sum(mirror["failures"] for mirror in told.values()) == 0


async def test_without_mirrors_it_says_nothing_of_them(tmp_path: Path) -> None:
    async with local_mesh(config(tmp_path)) as mesh:
        shown = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--target", mesh.grpc])
        told = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--target", mesh.grpc, "--json"])
    assert "mirror" not in shown.output
    assert [row["mirror"] for row in json.loads(told.stdout)["workers"]] == [None] * 3


async def shown_by(mesh: LocalMesh, word: str, more: str = "") -> str:
    """The output of `baton status`, once its last line has the word, and some line `more`: workers report some times in
    a lease."""
    async with asyncio.timeout(20):
        while True:
            done = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--target", mesh.grpc])
            assert done.exit_code == 0, done.output
            if word in done.output.splitlines()[-1] and more in done.output:
                return done.output
            await asyncio.sleep(_ASK_AGAIN_S)
