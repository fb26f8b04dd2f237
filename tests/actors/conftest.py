"""One mesh on Ray for all tests that need one: a start takes many seconds."""

from collections.abc import Iterator

import pytest

from tests.actors.running import Mesh, check_nothing_left, shared_memory


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Serves, on a cluster with room for a guest; stopped at the end by `baton down`, which must leave nothing."""
    before = shared_memory()
    running = Mesh(tmp_path_factory.mktemp("ray"), "tested", ray={"cpus": 6})
    started = running.baton("up", "--detach")
    assert started.status == 0, started.err
    record = running.record
    yield running
    stopped = running.baton("down")
    assert stopped.status == 0, stopped.err
    check_nothing_left(running, record, before)
