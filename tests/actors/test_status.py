"""What `baton status` says, asked of a mesh without Ray."""

import asyncio
import json
from pathlib import Path

from typer.testing import CliRunner

import actors.main  # noqa: F401 - it adds the command
from runtime.cli.app import app
from runtime.mesh.local import LocalMesh, local_mesh
from tests.mesh.test_local import asked, config
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


async def shown_by(mesh: LocalMesh, word: str) -> str:
    """The output of `baton status`, once it has the word: workers report some times in a lease."""
    async with asyncio.timeout(20):
        while True:
            done = await asyncio.to_thread(CliRunner().invoke, app, ["status", "--target", mesh.grpc])
            assert done.exit_code == 0, done.output
            if word in done.output.splitlines()[-1]:
                return done.output
            await asyncio.sleep(_ASK_AGAIN_S)
