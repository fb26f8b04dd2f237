"""Long texts are tokenized beside the event loop, and only so many wait."""

import asyncio
import threading
from collections.abc import Sequence

from runtime.domain.generation import Delta
from runtime.domain.sequence import FinishReason, Sampled
from runtime.engine.simulated import SimulatedTokenizer
from runtime.services.openai.settings import OpenAiSettings
from tests.services.openai.one_worker import MODEL
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import serving

DONE = Delta(0, (Sampled(257),), " alfa", FinishReason.LENGTH)


class HeldTokenizer(SimulatedTokenizer):
    """Blocks its thread on long texts until `go` is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.go = threading.Event()
        self.begun = asyncio.Event()
        self._loop = loop

    def encode(self, text: str) -> list[int]:
        if len(text) > 100:
            self._loop.call_soon_threadsafe(self.begun.set)
            assert self.go.wait(10)
        return super().encode(text[:5])

    def render_chat(self, messages: Sequence[dict[str, object]], tools: Sequence[dict[str, object]] = ()) -> list[int]:
        return self.encode(str(messages[0]["content"]))


async def test_the_gateway_serves_on_while_a_long_prompt_is_tokenized_and_refuses_too_many() -> None:
    tokenizer = HeldTokenizer(asyncio.get_running_loop())
    gateway = ScriptedGateway([DONE], tokenizer)
    settings = OpenAiSettings(inline_chars=100, tokenize_threads=1, tokenize_waiting=1)
    long = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 101}]}
    async with serving(gateway.role, settings) as api, asyncio.TaskGroup() as group:
        held = [group.create_task(api.http.post("/v1/chat/completions", json=long))]
        await tokenizer.begun.wait()
        short = await api.http.post("/v1/completions", json={"model": MODEL, "prompt": "x" * 100})
        assert short.status_code == 200
        assert not held[0].done()
        held += [group.create_task(api.http.post("/v1/chat/completions", json=long)) for _ in range(2)]
        refused, *_ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        (only,) = refused
        assert (only.result().status_code, only.result().headers["retry-after"]) == (429, "1")
        tokenizer.go.set()
    assert sorted(task.result().status_code for task in held) == [200, 200, 429]


async def test_a_prompt_that_is_tokenized_for_too_long_is_given_up() -> None:
    tokenizer = HeldTokenizer(asyncio.get_running_loop())
    gateway = ScriptedGateway([DONE], tokenizer)
    async with serving(gateway.role, OpenAiSettings(inline_chars=100, deadline_s=0.05)) as api:
        late = await api.http.post("/v1/completions", json={"model": MODEL, "prompt": "x" * 101})
        tokenizer.go.set()
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")
    assert gateway.asked == []
