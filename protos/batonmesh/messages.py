"""What both clients say and understand: requests from arguments, answers from messages. Never calls anybody."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

from google.protobuf.message import Message

from batonmesh.errors import InvalidArgument, TooLarge
from batonmesh.v1 import common_pb2, inference_pb2, mesh_pb2

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or a conversation of {"role": ..., "content": ...}, oldest first."""

Event = inference_pb2.TokenEvent | inference_pb2.Final
"""A token of the answer, or how it ended. Both have `text`; joined they are the answer."""

# What gateways take unless configured. They would refuse more without a word about the field.
MAX_REQUEST_BYTES = 16 << 20
# Of the whole request, not of how each token is chosen.
_OF_THE_REQUEST = frozenset({"n", "best_of", "priority"})
_GRAMMARS = frozenset({"json_schema", "regex", "choice", "lark"})
M = TypeVar("M", bound=Message)


class Options(TypedDict, total=False):
    """How to generate; what is left out has the defaults of batonmesh.v1.Sampling."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    logprobs: int
    prompt_logprobs: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    banned_tokens: Sequence[Sequence[int]]
    bad_words: Sequence[str]
    n: int
    best_of: int
    priority: int
    # What the answer must match: one of these at most.
    json_schema: str | Mapping[str, object]
    regex: str
    choice: Sequence[str]
    lark: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several answers."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: common_pb2.FinishReason.ValueType


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; of several the first, and `choices` are all of them."""

    text: str
    tokens: tuple[int, ...]
    final: inference_pb2.Final
    choices: tuple[Choice, ...]
    prompt_logprobs: common_pb2.PromptLogprobs | None = None


def sampling_of(options: Options) -> common_pb2.Sampling:
    """Raises `InvalidArgument` for what no request can hold."""
    sampling = common_pb2.Sampling()
    for name, value in options.items():
        if name in _GRAMMARS:
            if sampling.HasField("grammar"):
                raise InvalidArgument(f"{name} is a second grammar: send one", code="invalid", field=name)
            sampling.grammar.CopyFrom(_built(common_pb2.Grammar, name, _sendable(name, value)))
            continue
        sampling.MergeFrom(_built(common_pb2.Sampling, name, _sendable(name, value)))
    return sampling


def generate_request(
    model: str, prompt: Prompt, timeout: float | None, options: Options
) -> inference_pb2.GenerateRequest:
    """Raises `InvalidArgument` for what no request can hold, and `TooLarge`."""
    request = inference_pb2.GenerateRequest(prompt=_prompt(prompt))
    sampling: Options = {}
    for name, value in options.items():
        if name in _OF_THE_REQUEST:
            request.MergeFrom(_built(inference_pb2.GenerateRequest, name, value))
        else:
            sampling[name] = value  # type: ignore[literal-required]
    request.sampling.CopyFrom(sampling_of(sampling))
    request.MergeFrom(_built(inference_pb2.GenerateRequest, "model", model))
    if timeout is not None:
        milliseconds = max(round(timeout * 1000), 1)
        request.MergeFrom(_built(inference_pb2.GenerateRequest, "deadline_ms", milliseconds))
    return _small_enough(request)


def count_request(model: str, prompt: Prompt) -> inference_pb2.CountTokensRequest:
    """Raises as `generate_request`."""
    request = inference_pb2.CountTokensRequest(prompt=_prompt(prompt))
    request.MergeFrom(_built(inference_pb2.CountTokensRequest, "model", model))
    return _small_enough(request)


def explain_request(
    model: str, prompt: Prompt | int, max_tokens: int | None, tenant: str
) -> mesh_pb2.ExplainRouteRequest:
    """Raises as `generate_request`."""
    request = mesh_pb2.ExplainRouteRequest(tenant=tenant)
    if isinstance(prompt, int):
        request.MergeFrom(_built(mesh_pb2.ExplainRouteRequest, "tokens", prompt))
    else:
        request.prompt.CopyFrom(_prompt(prompt))
    request.MergeFrom(_built(mesh_pb2.ExplainRouteRequest, "model", model))
    if max_tokens is not None:
        request.MergeFrom(_built(mesh_pb2.ExplainRouteRequest, "max_tokens", max_tokens))
    return _small_enough(request)


def events(message: inference_pb2.GenerateResponse) -> list[Event]:
    return [*message.events, message.final] if message.HasField("final") else [*message.events]


def explained(message: inference_pb2.GenerateResponse) -> common_pb2.PromptLogprobs | None:
    return message.prompt_logprobs if message.HasField("prompt_logprobs") else None


def whole(answer: Iterable[Event]) -> Answer:
    """The answer that these events are; the last of them is its final."""
    *events, final = answer
    assert isinstance(final, inference_pb2.Final), "a stream that ends well ends with its final"
    tokens = [event for event in events if isinstance(event, inference_pb2.TokenEvent)]
    alone = inference_pb2.Choice(finish_reason=final.finish_reason, text=final.text)
    choices = []
    for number, end in enumerate(final.choices or [alone]):
        mine = [token for token in tokens if token.choice == number]
        text = "".join(token.text for token in mine) + end.text
        choices.append(Choice(text, tuple(token.id for token in mine), end.finish_reason))
    return Answer(choices[0].text, choices[0].tokens, final, tuple(choices))


def _prompt(prompt: Prompt) -> inference_pb2.Prompt:
    if isinstance(prompt, str):
        return _built(inference_pb2.Prompt, "text", prompt, "prompt")
    if prompt and isinstance(prompt[0], Mapping):
        chat = _built(inference_pb2.Chat, "messages", prompt, "messages")
        return inference_pb2.Prompt(chat=chat)
    return inference_pb2.Prompt(tokens=_built(common_pb2.TokenIds, "ids", prompt, "prompt"))


def _built(kind: Callable[..., M], name: str, value: object, field: str | None = None) -> M:
    """A message with one field set. Protobuf's own errors do not say which it was."""
    try:
        return kind(**{name: value})
    except (TypeError, ValueError) as error:
        field = field or name
        raise InvalidArgument(f"{field} cannot be sent: {error}", code="invalid", field=field) from error


def _sendable(name: str, value: object) -> object:
    """As the message wants it. A single string is not taken for a list of characters."""
    if name in ("stop", "bad_words") and isinstance(value, str):
        return [value]
    if name == "json_schema" and isinstance(value, Mapping):
        return json.dumps(value)
    if name == "choice" and isinstance(value, Sequence) and not isinstance(value, str):
        return _built(common_pb2.Choices, "texts", value, name)
    if name == "banned_tokens" and isinstance(value, Sequence):
        return [_built(common_pb2.TokenIds, "ids", each, name) for each in value]
    return value


def _small_enough(request: M) -> M:
    size = request.ByteSize()
    if size > MAX_REQUEST_BYTES:
        raise TooLarge(
            f"prompt makes a request of {size} bytes, the limit is {MAX_REQUEST_BYTES}",
            code="too_large",
            field="prompt",
        )
    return request
