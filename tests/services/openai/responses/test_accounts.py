"""What HTTP tells of a session beyond OpenAI's shape: where a prompt's KV came from, what was spent of which limits."""

import openai
import pytest

from batonmesh.v1 import limits_pb2
from batonmesh.v1 import session_pb2 as pb
from runtime.domain.reuse import Missed
from tests.services.openai.responses.conftest import Api


async def test_a_response_says_where_its_prompt_s_kv_came_from_and_what_it_took(api: Api) -> None:
    one = await api.ask("My dog is called Rex.")
    two = await api.ask("What is my dog called?", previous_response_id=one.id)
    for made, had_some in ((one, False), (two, True)):
        assert made.usage is not None
        told, cached = made.model_dump()["baton"], made.usage.input_tokens_details.cached_tokens
        sources, took = told["sources"], told["took"]
        assert sources["pool"] + sources["handed_over"] == cached
        assert sources["computed"] == made.usage.input_tokens - cached
        assert (took["prompt_tokens"], took["cached_tokens"]) == (sources["computed"], cached)
        assert (took["completion_tokens"], took["turns"]) == (made.usage.output_tokens, 1)
        assert (cached > 0, told["limit"]) == (had_some, None)
    assert (sources["missed"] > 0, sources["why"]) == (True, Missed.NEVER_STORED)
    assert await api.client.responses.retrieve(two.id) == two
    unstored = (await api.ask("Hello.", store=False)).model_dump()["baton"]
    assert (unstored["sources"], unstored["took"]["turns"]) == (None, 0)


async def test_a_conversation_says_what_it_may_spend_and_has_spent(api: Api) -> None:
    limits = limits_pb2.Limits(completion_tokens=10)
    session = await api.user.stub.CreateSession(pb.CreateSessionRequest(model="simulated", limits=limits))
    talk = f"conv_{session.id.removeprefix('sess-')}"
    made = await api.ask("Hello.", conversation=talk)
    assert made.incomplete_details is not None
    assert (made.incomplete_details.reason, made.model_dump()["baton"]["limit"]) == (
        "max_output_tokens",
        "completion_tokens",
    )
    budget = (await api.client.conversations.retrieve(talk)).model_dump()["baton"]
    assert (budget["limits"]["completion_tokens"], budget["limits"]["turns"]) == (10, None)
    assert (budget["used"]["completion_tokens"], budget["used"]["turns"], budget["held"]["turns"]) == (10, 1, 0)
    assert (budget["ttl_ms"], budget["expires_in_ms"]) == (None, None)
    with pytest.raises(openai.ConflictError, match="has spent 10 of 10") as spent:
        await api.ask("And?", conversation=talk)
    assert spent.value.param == "conversation"
