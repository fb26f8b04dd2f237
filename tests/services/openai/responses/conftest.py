"""A simulated mesh that keeps sessions, and OpenAI's unmodified client of its responses."""

import sqlite3
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.responses import Response
from pydantic import BaseModel

from runtime.engine.simulated import SimulatedTokenizer
from runtime.mesh.local import local_mesh
from runtime.store.content import OF_A_SESSION
from tests.services.session_mesh import NEW, User, config, user

TABLES = (*OF_A_SESSION, "sessions", "keys")


@dataclass(frozen=True)
class Api:
    url: str
    client: AsyncOpenAI
    user: User
    file: Path

    def rows(self) -> dict[str, int]:
        """How many the store has in each table."""
        with closing(sqlite3.connect(self.file)) as store:
            return {table: store.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in TABLES}

    async def ask(self, said: str, **more: object) -> Response:
        asked = {"model": "simulated", "input": said, "max_output_tokens": NEW, "temperature": 0} | more
        answer: Response = await self.client.responses.create(**asked)  # type: ignore[call-overload]
        return Response.model_validate(answer.model_dump(by_alias=True, warnings="error"), strict=True)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    kept = config(tmp_path)
    async with local_mesh(kept, http_port=0) as mesh, user(mesh.grpc) as someone:
        http = DefaultAsyncHttpxClient(verify=False)
        async with AsyncOpenAI(base_url=f"{mesh.http}/v1", api_key="none", max_retries=2, http_client=http) as client:
            yield Api(f"{mesh.http}/v1", client, someone, kept.state / "sessions.sqlite")


def words(tokens: list[int]) -> str:
    decoder = SimulatedTokenizer().decoder()
    return "".join(decoder.push(token) for token in tokens)


def texts(items: Iterable[BaseModel]) -> list[str]:
    """Of messages with one part each."""
    return [item.model_dump()["content"][0]["text"] for item in items]
