"""The shipped model in a session: what it was told before the whole mesh was started again, it knows after."""

from pathlib import Path

import grpc
import pytest

from batonmesh.v1 import common_pb2, session_pb2_grpc
from batonmesh.v1 import session_pb2 as pb
from runtime.config import Config, EngineConfig, MeshConfig, WorkerConfig
from runtime.mesh.local import local_mesh
from tests.services.session_mesh import User

SAMPLING = common_pb2.Sampling(max_tokens=48, temperature=0)


def config(state: Path) -> Config:
    return Config(
        mesh=MeshConfig(name="recall", state=state),
        engine=EngineConfig(kv_mib=32),
        workers=(WorkerConfig(name="decode", role="decode"),),
    )


@pytest.mark.timeout(240)
async def test_a_fact_that_was_told_is_recalled_after_a_restart_of_the_whole_mesh(tmp_path: Path) -> None:
    told = ["Hello.", "My dog is called Rex.", "The code is 4417.", "I had soup for lunch."]
    async with local_mesh(config(tmp_path)) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        user = User(session_pb2_grpc.SessionsStub(channel))
        session = (await user.stub.CreateSession(pb.CreateSessionRequest(model="baton-recall"))).id
        for text in told:
            seen = await user.run(session, text, sampling=SAMPLING)
            assert seen.end.stop_reason == pb.STOP_REASON_END_TURN
        before = seen.end.usage
        warm = await user.run(session, "Thank you.", sampling=SAMPLING)
        # All whole pages of what was computed before; the end-of-turn token itself was not committed.
        assert warm.end.usage.cached_tokens >= (before.prompt_tokens + before.completion_tokens - 2) // 32 * 32
    async with local_mesh(config(tmp_path)) as mesh, grpc.aio.insecure_channel(mesh.grpc) as channel:
        user = User(session_pb2_grpc.SessionsStub(channel))
        recalled = await user.run(session, "What is my dog called?", sampling=SAMPLING)
        assert recalled.text.strip() == "Your dog is called Rex."
        assert recalled.end.usage.cached_tokens == 0
        assert (await user.run(session, "What is the code?", sampling=SAMPLING)).text.strip() == "The code is 4417."
