"""Requests by a raw gRPC stub, and what came back."""

from dataclasses import dataclass, field

import grpc

from batonmesh.v1 import common_pb2 as common
from batonmesh.v1 import inference_pb2 as pb
from batonmesh.v1 import inference_pb2_grpc


@dataclass(slots=True)
class Answer:
    """Tokens in the order of their indices, which are checked to have neither gap nor repetition."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    final: pb.Final | None = None

    def take(self, response: pb.GenerateResponse) -> None:
        for event in response.events:
            assert event.index == len(self.tokens)
            self.tokens.append(event.id)
            self.text += event.text
        if response.HasField("final"):
            assert self.final is None
            self.final = response.final
            self.text += response.final.text


def request(model: str, tokens: list[int], **sampling: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=model,
        prompt=pb.Prompt(tokens=common.TokenIds(ids=tokens)),
        sampling=common.Sampling(**sampling),  # type: ignore[arg-type]  # checked by the messages themselves
    )


async def ask(channel: grpc.aio.Channel, wanted: pb.GenerateRequest, seconds: float = 100.0) -> Answer:
    answer = Answer()
    async for response in inference_pb2_grpc.InferenceStub(channel).Generate(wanted, timeout=seconds):
        answer.take(response)
    assert answer.final is not None
    return answer
