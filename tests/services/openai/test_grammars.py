"""Answers over HTTP that must match: as OpenAI's own client asks for them, and as other servers' clients do."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.services.openai.one_worker import MODEL, one_worker
from tests.services.openai.serving import serving

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "legs"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_json_of_the_schema(stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": HELLO,
        "max_tokens": 300,
        "seed": 5,
        "response_format": {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}},
    }
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        if stream:
            chunks = [chunk async for chunk in await api.client.chat.completions.create(**asked, stream=True)]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            finish = chunks[-1].choices[0].finish_reason
        else:
            (choice,) = (await api.client.chat.completions.create(**asked)).choices
            text, finish = choice.message.content, choice.finish_reason
    animal = json.loads(text)
    assert finish == "stop"
    assert animal.keys() == {"kind", "legs"}
    assert animal["kind"] in ("cat", "dog")
    assert animal["legs"] in range(10)


async def test_completions_take_grammars_too() -> None:
    asked = {"model": MODEL, "prompt": "hello", "max_tokens": 20}
    async with one_worker() as mesh, serving(mesh.gateway) as api:

        async def text(**grammar: object) -> str:
            (choice,) = (await api.http.post("/v1/completions", json=asked | grammar)).json()["choices"]
            assert choice["finish_reason"] == "stop"
            return str(choice["text"])

        assert await text(guided_choice=["東京"]) == "東京"
        assert await text(guided_regex="[0-9]{4}!") != await text(guided_regex="a{3}") == "aaa"
        assert (await text(guided_grammar='start: "(" /[a-c]/ ")"'))[0] == "("


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("guided_regex", "((", "unclosed group"),
        ("guided_grammar", "start: missing", "unknown name"),
        ("guided_json", {"type": "cat"}, "cat"),
        ("guided_json", "{", "property name"),
        ("guided_choice", ["x"] * 1025, "has 1 to 1024 choices"),
        ("guided_regex", "x" * 16_385, "has a text of 1 to 16384 characters"),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "cat"}}}, "cat"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_cannot_be_used_is_refused_by_the_name_it_was_sent_by(
    field: str, value: object, said: str, stream: bool
) -> None:
    async with one_worker() as mesh, serving(mesh.gateway) as api:
        with pytest.raises(openai.BadRequestError) as refused:
            await api.client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=stream, extra_body={field: value}
            )
    assert refused.value.param == field
    assert said in refused.value.message
