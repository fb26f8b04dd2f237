"""What an answer shows of its prompt: the echoed text, and log-probabilities in OpenAI's and in vLLM's shape."""

import json
from typing import Any

import pytest

from runtime.domain.generation import Delta
from runtime.domain.sequence import FinishReason, Sampled
from runtime.engine.simulated import SimulatedTokenizer, prompt_scores
from tests.services.openai.one_worker import MODEL, one_worker
from tests.services.openai.scripted import ScriptedGateway
from tests.services.openai.serving import serving

PROMPT = "once upon a time"
IDS = SimulatedTokenizer().encode(PROMPT)
ASKED: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "max_tokens": 3, "temperature": 0}


def spelled(token: int) -> str:
    decoder = SimulatedTokenizer().decoder()
    return decoder.push(token) + decoder.flush()


async def answer(path: str = "completions", **asked: object) -> dict[str, Any]:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        response = await api.http.post(f"/v1/{path}", json=asked)
        await mesh.worker.idle()
        found: dict[str, Any] = response.json()
        return found


async def test_an_echo_is_the_prompt_and_then_the_answer() -> None:
    plain = await answer(**ASKED)
    for prompt in (PROMPT, IDS):
        echoed = await answer(**ASKED | {"echo": True, "prompt": prompt})
        assert echoed["choices"][0]["text"] == PROMPT + plain["choices"][0]["text"]
        assert echoed["choices"][0]["logprobs"] is None
        assert echoed["usage"] == plain["usage"]


async def test_the_columns_of_an_echo_begin_with_those_of_the_prompt() -> None:
    plain = (await answer(**ASKED, logprobs=2))["choices"][0]["logprobs"]
    columns = (await answer(**ASKED, logprobs=2, echo=True))["choices"][0]["logprobs"]
    scores = prompt_scores(IDS, 2)
    assert columns["tokens"] == [*PROMPT, *plain["tokens"]]
    assert columns["token_logprobs"] == [None, *scores.logprobs, *plain["token_logprobs"]]
    assert columns["text_offset"] == [*range(len(PROMPT)), *(len(PROMPT) + each for each in plain["text_offset"])]
    assert len(columns["top_logprobs"]) == len(columns["tokens"])
    assert columns["top_logprobs"][0] is None
    first = {spelled(token): logprob for token, logprob in scores.likeliest(0)} | {PROMPT[1]: scores.logprobs[0]}
    assert columns["top_logprobs"][1] == first


@pytest.mark.parametrize("echo", [{"echo": True}, {"echo": True, "logprobs": 1}])
async def test_a_stream_echoes_the_prompt_before_the_first_piece_of_every_choice(echo: dict[str, Any]) -> None:
    asked = ASKED | echo | {"n": 2, "seed": 3, "temperature": 1}
    whole = await answer(**asked)
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        body = (await api.http.post("/v1/completions", json=asked | {"stream": True})).text
    *events, _ = [line.removeprefix("data: ") for line in body.splitlines() if line]
    pieces = [choice for event in events for choice in json.loads(event)["choices"]]
    for choice in whole["choices"]:
        mine = [piece for piece in pieces if piece["index"] == choice["index"]]
        assert mine[0]["text"] == PROMPT
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        told = [piece["logprobs"] for piece in mine if piece["logprobs"]]
        assert [each for part in told for each in part["token_logprobs"]] == (
            choice["logprobs"]["token_logprobs"] if "logprobs" in echo else []
        )


async def test_nothing_but_the_prompt_can_be_asked() -> None:
    for more in ({}, {"logprobs": 0}):
        found = await answer(**ASKED | {"max_tokens": 0, "echo": True} | more)
        (choice,) = found["choices"]
        assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
        assert found["usage"]["completion_tokens"] == 0
    assert choice["logprobs"]["token_logprobs"] == [None, *prompt_scores(IDS, 0).logprobs]


async def test_completions_list_what_the_tokens_of_the_prompt_are_worth_with_every_choice() -> None:
    found = await answer(**ASKED | {"n": 2}, prompt_logprobs=2)
    scores = prompt_scores(IDS, 2)
    for choice in found["choices"]:
        first, *others = choice["prompt_logprobs"]
        assert first is None
        for place, each in enumerate(others):
            token = IDS[place + 1]
            mine = {"logprob": scores.logprobs[place], "rank": scores.ranks[place], "decoded_token": spelled(token)}
            assert each[str(token)] == mine
            for rank, (likely, logprob) in enumerate(scores.likeliest(place), 1):
                if likely != token:
                    assert each[str(likely)] == {"logprob": logprob, "rank": rank, "decoded_token": spelled(likely)}


async def test_only_the_first_choice_asks_for_them_so_that_the_others_share_its_pages() -> None:
    gateway = ScriptedGateway([Delta(0, (Sampled(257),), "x", FinishReason.STOP, scores=prompt_scores(IDS, 1))])
    async with serving(gateway.role) as api:
        await api.http.post("/v1/completions", json=ASKED | {"n": 3, "prompt_logprobs": 1})
    assert [asked.sampling.prompt_logprobs for asked in gateway.asked] == [1, None, None]


async def test_a_prompt_of_one_token_has_nothing_before_it() -> None:
    (choice,) = (await answer(**ASKED | {"prompt": [65], "echo": True, "logprobs": 1}, prompt_logprobs=1))["choices"]
    assert choice["prompt_logprobs"] == [None]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["text"].startswith("A")


async def test_a_chat_lists_them_beside_its_choices() -> None:
    messages: list[dict[str, object]] = [{"role": "user", "content": "hi"}]
    found = await answer("chat/completions", model=MODEL, messages=messages, max_tokens=2, prompt_logprobs=0)
    ids = SimulatedTokenizer().render_chat(messages)
    scores = prompt_scores(ids, 0)
    assert [next(iter(each.values()))["logprob"] for each in found["prompt_logprobs"][1:]] == list(scores.logprobs)
    plain = await answer("chat/completions", model=MODEL, messages=messages, max_tokens=2)
    assert "prompt_logprobs" not in plain


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("prompt_logprobs", {"prompt_logprobs": 21}),
        ("prompt_logprobs", {"prompt_logprobs": -1}),
        ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": -1, "echo": True}),
    ],
)
async def test_what_cannot_be_told_is_refused_by_its_field(field: str, asked: dict[str, object]) -> None:
    error = (await answer(**ASKED | asked))["error"]
    assert (error["param"], error["type"]) == (field, "invalid_request_error")


async def test_a_prompt_too_long_to_be_explained_is_refused_by_the_field_that_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.domain.scoring.MAX_PROMPT_LOGPROBS", 3 * len(IDS) - 1)
    for field, asked in (("prompt_logprobs", {"prompt_logprobs": 2}), ("logprobs", {"echo": True, "logprobs": 2})):
        error = (await answer(**ASKED | asked))["error"]
        assert error["param"] == field
        assert str(3 * len(IDS) - 1) in error["message"]
    assert "error" not in await answer(**ASKED | {"prompt_logprobs": 1})
