"""Text completions of real roles, as OpenAI's own client reads them."""

from runtime.domain.generation import Delta
from runtime.domain.sequence import FinishReason, Sampled, Sampling
from runtime.engine.simulated import SimulatedTokenizer, continuation
from tests.services.openai.one_worker import MODEL, one_worker
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import serving

PROMPT = "once upon a time"
IDS = SimulatedTokenizer().encode(PROMPT)


def oracle(tokens: int) -> list[str]:
    decoder = SimulatedTokenizer().decoder()
    return [decoder.push(token) for token in continuation(IDS, Sampling(max_tokens=tokens, temperature=0))]


async def test_text_token_ids_and_a_list_of_one_text_are_the_same_prompt() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        for prompt in (PROMPT, IDS, [PROMPT], [IDS]):
            answer = await api.client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0)
            assert answer.choices[0].text == "".join(oracle(4))
            assert answer.choices[0].finish_reason == "length"
            assert answer.object == "text_completion"
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == len(IDS)


async def test_a_streamed_completion_has_one_event_for_every_token_then_its_finish() -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        stream = await api.client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=4,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        *pieces, last, usage = [chunk async for chunk in stream]
    assert [piece.choices[0].text for piece in pieces] == oracle(4)
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "length")
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 4


async def test_fields_of_other_servers_reach_the_sampler() -> None:
    stop_id = SimulatedTokenizer.eos_ids
    words = continuation(IDS, Sampling(max_tokens=6, temperature=0))
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        greedy = await api.client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=6,
            temperature=0,
            extra_body={"top_k": -1, "ignore_eos": True, "stop_token_ids": [words[2], *stop_id]},
        )
    assert greedy.choices[0].finish_reason == "stop"
    assert greedy.choices[0].text == "".join(oracle(6)[:2])


async def test_the_priority_of_a_request_is_that_of_its_generation() -> None:
    gateway = ScriptedGateway([Delta(0, (Sampled(257),), "x", FinishReason.STOP)])
    async with serving(gateway.role) as api:
        for priority in (None, 0, -5):
            await api.http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "priority": priority})
    assert [asked.priority for asked in gateway.asked] == [0, 0, -5]
