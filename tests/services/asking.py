"""Requests to a gateway by gRPC, and what comes of them."""

from batonmesh.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from runtime.domain.sequence import Sampling
from runtime.engine.simulated import StepProfile, continuation

PROMPT = tuple(range(65, 90)) * 6
SLOW = StepProfile(base_ms=5.0)


def request(**changes: object) -> inference_pb2.GenerateRequest:
    tokens = inference_pb2.Prompt(tokens=common_pb2.TokenIds(ids=PROMPT))
    sampling = common_pb2.Sampling(max_tokens=12, temperature=0)
    return inference_pb2.GenerateRequest(**({"model": "simulated", "prompt": tokens, "sampling": sampling} | changes))  # type: ignore[arg-type]


async def collect(
    stub: inference_pb2_grpc.InferenceStub, asked: inference_pb2.GenerateRequest
) -> tuple[list[int], inference_pb2.Final]:
    messages = [message async for message in stub.Generate(asked, timeout=20)]
    events = [event for message in messages for event in message.events]
    assert [event.index for event in events] == list(range(len(events)))
    assert messages[-1].HasField("final")
    return [event.id for event in events], messages[-1].final


def expected(max_tokens: int = 12) -> list[int]:
    return continuation(PROMPT, Sampling(max_tokens, temperature=0))
