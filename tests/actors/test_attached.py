"""A mesh on a Ray cluster that somebody else runs: here the cluster of the session's mesh."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from actors.processes import of_run
from batonmesh import Client
from tests.actors.running import START_S, Mesh

pytestmark = pytest.mark.timeout(START_S * 1.5)


@pytest.fixture
def token(mesh: Mesh) -> dict[str, str]:
    return {"RAY_AUTH_TOKEN_PATH": str(mesh.folder.token)}


@pytest.fixture
def cluster(mesh: Mesh) -> Iterator[dict[str, object]]:
    """What a configuration says to use the session's cluster; afterwards only what ran there before still does."""
    before = running(mesh)
    yield {
        "ray": {"address": mesh.record.cluster},
        "tls": {"plaintext": "everywhere"},  # Ray may call this machine by an address of its network
        "gateway": {"http_port": mesh.http_port, "http_path": "/guest"},
        "workers": [{"name": "guest", "role": "decode"}],
    }
    assert running(mesh) == before
    assert mesh.workers().keys() == {"prefill-0", "decode-0", "decode-1"}


def running(mesh: Mesh) -> set[str]:
    """Names of the host's actors by the titles of their processes, as Ray sets them; idle ones do not count, and after
    a dot stands what they do now."""
    titles = [" ".join(process.cmdline()) for process in of_run(mesh.record.run)]
    return {title.strip().partition(".")[0] for title in titles if title.startswith("ray::") and "IDLE" not in title}


def test_a_mesh_serves_on_a_running_cluster_and_leaves_it_as_it_was(
    tmp_path: Path, mesh: Mesh, cluster: dict[str, object], token: dict[str, str]
) -> None:
    guest = Mesh(tmp_path, "guest", **cluster)
    up = guest.baton("up", "--detach", **token)
    assert up.status == 0, up.err
    with Client(guest.grpc) as client:
        assert [worker.id for worker in client.topology(timeout=5).workers] == ["guest-0"]
        assert client.complete("simulated", "Hello.", max_tokens=5, timeout=30).final.usage.completion_tokens == 5
    models = httpx.get(f"{mesh.http}/guest/v1/models", timeout=10).json()
    assert [model["id"] for model in models["data"]] == ["simulated"]
    supervisor = guest.record.pid
    down = guest.baton("down")
    assert down.status == 0, down.err
    assert not psutil.pid_exists(supervisor)
    assert guest.folder.read() is None
    assert httpx.get(f"{mesh.http}/v1/models", timeout=10).is_success


def test_a_worker_that_cannot_start_says_why_in_its_own_words(
    tmp_path: Path, cluster: dict[str, object], token: dict[str, str]
) -> None:
    starved = Mesh(tmp_path, "starved", engine={"pages": 2}, **cluster)
    up = starved.baton("up", **token)
    assert up.status == 1
    assert "worker guest-0 did not start: engine.pages: makes 2 pages" in up.err
    assert "Traceback" not in up.err
    assert starved.folder.read() is None
