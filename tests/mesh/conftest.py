"""What the meshes of several tests need beside themselves."""

from collections.abc import Iterator

import pytest

from tests.store.servers import empty, postgres


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[str]:
    """The DSN of a PostgreSQL server."""
    with postgres() as dsn:
        yield dsn


@pytest.fixture
def server(postgres_server: str) -> str:
    """The same, once it is empty."""
    empty(postgres_server)
    return postgres_server
