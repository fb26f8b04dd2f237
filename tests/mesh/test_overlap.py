"""Pages as large as a real model's, of simulated tokens: they travel, whole or layer by layer, and change no answer."""

from pathlib import Path
from typing import Literal

import pytest

from runtime.config import ModelConfig, SimulatedConfig
from runtime.errors import StartError
from runtime.ids import WorkerId
from runtime.kv_settings import HandoffConfig
from runtime.mesh.local import local_mesh
from runtime.simulating import SimulatedKvConfig
from tests.mesh.test_local import PREFILL, PROMPT, asked, config, expected

KV = SimulatedKvConfig(layers=8, kv_heads=4, head_dim=32, dtype="bfloat16")
TOKEN_BYTES = 8 * 2 * 4 * 32 * 2


@pytest.mark.parametrize("layer_groups", [1, 3, 8])
@pytest.mark.parametrize("transport", ["auto", "grpc"])
async def test_an_answer_over_wide_pages_is_that_over_narrow_ones(
    tmp_path: Path, layer_groups: int, transport: Literal["auto", "grpc"]
) -> None:
    wide = config(
        tmp_path,
        model=ModelConfig(simulated=SimulatedConfig(max_tokens=4096, base_ms=4.0, kv=KV)),
        handoff=HandoffConfig(remote_min_tokens=16, transport=transport, layer_groups=layer_groups),
    )
    async with local_mesh(wide) as mesh, asked(mesh) as user:
        text, final = await user.ask()
        assert text == expected()
        assert final.handoff.moved_tokens == len(PROMPT) - 1
        assert final.handoff.moved_pages == -(-(len(PROMPT) - 1) // 8)
        (path,) = mesh.workers[PREFILL].transport.traffic().paths
        assert path.bytes == TOKEN_BYTES * (len(PROMPT) - 1)
        assert path.transport == ("shm" if transport == "auto" else "grpc")
        mesh.check()


async def test_workers_that_cut_their_pages_otherwise_are_refused_by_the_field(tmp_path: Path) -> None:
    cut = ModelConfig(simulated=SimulatedConfig(kv=KV))
    one = config(tmp_path, model=cut, handoff=HandoffConfig(layer_groups=2))
    async with local_mesh(one) as mesh:
        await mesh.stop(WorkerId("decode-1"))
        mesh.config = config(tmp_path, model=cut, handoff=HandoffConfig(layer_groups=4))
        with pytest.raises(StartError, match=r"pages\.groups"):
            await mesh.start(WorkerId("decode-1"))
