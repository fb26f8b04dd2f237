"""`baton drain` at a gateway: it tells how far the worker is, and waits until it has left."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from anyio.from_thread import start_blocking_portal
from typer.testing import CliRunner

from actors.drain import drain
from runtime.cli.face import Face
from runtime.config import Config, EngineConfig, MeshConfig, ModelConfig, SimulatedConfig, TimingConfig
from runtime.mesh.local import local_mesh

RUNNER = CliRunner()
app = typer.Typer(cls=Face)
app.command()(drain)
app.callback()(lambda: None)  # so that the one command has a name


@pytest.fixture
def target(tmp_path: Path) -> Iterator[str]:
    """One prefill worker and two that decode, without Ray."""
    config = Config(
        mesh=MeshConfig(name="drained", state=tmp_path),
        model=ModelConfig(simulated=SimulatedConfig()),
        engine=EngineConfig(pages=64),
        timing=TimingConfig(lease_s=2.0),
    )
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(local_mesh(config)) as mesh:
        yield mesh.grpc


def test_it_waits_until_the_worker_has_left_and_names_who_cannot(target: str) -> None:
    drained = RUNNER.invoke(app, ["drain", "decode-0", "--target", target, "--grace", "5"])
    assert drained.exit_code == 0, drained.stderr
    assert drained.stdout.endswith("it has left\n")
    for worker, why in (("decode-0", "no worker decode-0 serves"), ("decode-1", "decode-1 is the last decode worker")):
        refused = RUNNER.invoke(app, ["drain", worker, "--target", target])
        assert refused.exit_code == 1
        assert why in refused.stderr
