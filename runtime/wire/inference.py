"""What users ask and what they get: prompts and models, and the deltas of an answer as its messages."""

from collections.abc import Iterable, Sequence

from batonmesh.v1 import common_pb2
from batonmesh.v1 import inference_pb2 as pb
from runtime.domain.generation import Delta, Handoffs
from runtime.domain.sequence import FinishReason, Sampled
from runtime.domain.sessions import Item, check_calls
from runtime.domain.settling import conversation
from runtime.domain.spec import ModelSpec
from runtime.domain.tools import ToolCall
from runtime.errors import InvalidArgument, TooLarge
from runtime.wire import fields
from runtime.wire.handoff import pack_handoff
from runtime.wire.routing import pack_cost
from runtime.wire.sequence import TO_FINISH, pack_scores, pack_top
from runtime.wire.tools import pack_call, unpack_item

MAX_TEXT_BYTES = 4 << 20
_MAX_MESSAGES = 16_384

ChatMessages = list[dict[str, object]]


def unpack_prompt(message: pb.Prompt) -> str | ChatMessages | tuple[int, ...]:
    """Text, a conversation as chat templates want it, or token ids; raises `InvalidArgument` or `TooLarge`."""
    kind = message.WhichOneof("content")
    if kind == "tokens":
        return fields.tokens(message.tokens.ids, "prompt", least=1)
    if (size := message.ByteSize()) > MAX_TEXT_BYTES:
        raise TooLarge(f"prompt has {size} bytes of text, the limit is {MAX_TEXT_BYTES}", field="prompt")
    match kind:
        case "text":
            if not message.text:
                raise InvalidArgument("prompt is empty", field="prompt")
            return message.text
        case "chat":
            return _unpack_chat(message.chat)
        case _:
            raise InvalidArgument("prompt is absent: it needs text, chat or tokens", field="prompt")


def _unpack_chat(message: pb.Chat) -> ChatMessages:
    fields.at_least(1, len(message.messages), "messages")
    fields.at_most(_MAX_MESSAGES, len(message.messages), "messages")
    return conversation([_unpack_message(each, number) for number, each in enumerate(message.messages)])


def _unpack_message(message: pb.ChatMessage, number: int) -> Item:
    fields.name(message.role, "role", 64)
    item = unpack_item(message)
    check_calls(item, f"messages[{number}]")
    return item


def pack_model(spec: ModelSpec, created: int) -> pb.Model:
    return pb.Model(
        name=spec.name,
        max_tokens=spec.max_tokens,
        vocab=spec.vocab,
        page_tokens=spec.page_tokens,
        created=created,
        kv_fingerprint=spec.kv_fingerprint,
        serving_fingerprint=spec.serving_fingerprint,
    )


class Answer:
    """`choices` answers to one prompt on their way out; keeps what their final has to tell. `logprobs`: they were asked
    for."""

    def __init__(self, prompt_tokens: int, choices: int = 1, *, logprobs: bool) -> None:
        self._prompt_tokens = prompt_tokens
        self._logprobs = logprobs
        self._completion_tokens = 0
        self._handoffs = Handoffs()
        self._attempts = 1
        self._route: common_pb2.RouteCost | None = None
        self._ends: list[pb.Choice | None] = [None] * choices
        self._called: set[int] = set()

    @property
    def complete(self) -> bool:
        """Whether the final was told."""
        return None not in self._ends

    def pack(
        self,
        arrivals: Iterable[tuple[int, Delta]],
        withheld: int = 0,
        calls: Sequence[tuple[int, ToolCall]] = (),
    ) -> pb.GenerateResponse:
        """One message with all of `arrivals`, which follow those of the message before; `withheld` are tokens that were
        made and are not given, `calls` what became whole with them, and by which choice."""
        message = pb.GenerateResponse(tool_calls=[pb.MadeCall(choice=n, call=pack_call(call)) for n, call in calls])
        self._called.update(choice for choice, _ in calls)
        for choice, delta in arrivals:
            if choice == 0:
                self._handoffs.add(delta)
                self._attempts = delta.attempt
                if delta.handoff is not None:
                    self._route = None if delta.why is None else pack_cost(delta.why)
            self._completion_tokens += len(delta.tokens)
            message.events.extend(self._events(choice, delta))
            if delta.scores is not None:
                message.prompt_logprobs.CopyFrom(pack_scores(delta.scores))
            if delta.finish is not None:
                text = "" if delta.tokens else delta.text
                self._ends[choice] = pb.Choice(finish_reason=self._reason(choice, delta.finish), text=text)
            else:
                assert delta.tokens or not delta.text, "only the end has text without a token"
        if self.complete:
            self._completion_tokens += withheld
            message.final.CopyFrom(self._final([end for end in self._ends if end is not None]))
        return message

    def _reason(self, choice: int, finish: FinishReason) -> common_pb2.FinishReason.ValueType:
        """One that ended by itself, with calls, ended because of them."""
        called = choice in self._called and finish is FinishReason.STOP
        return common_pb2.FINISH_REASON_TOOL_CALLS if called else TO_FINISH[finish]

    def _events(self, choice: int, delta: Delta) -> list[pb.TokenEvent]:
        told = enumerate(zip(delta.tokens, delta.texts(), strict=True), delta.index)
        return [self._event(choice, index, sampled, text) for index, (sampled, text) in told]

    def _event(self, choice: int, index: int, sampled: Sampled, text: str) -> pb.TokenEvent:
        if not self._logprobs:
            return pb.TokenEvent(index=index, id=sampled.token, text=text, choice=choice)
        top = pack_top(sampled.top)
        return pb.TokenEvent(index=index, id=sampled.token, text=text, logprob=sampled.logprob, top=top, choice=choice)

    def _final(self, ends: Sequence[pb.Choice]) -> pb.Final:
        newest = self._handoffs.newest
        return pb.Final(
            finish_reason=ends[0].finish_reason,
            text=ends[0].text,
            usage=pb.Usage(
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._handoffs.cached_tokens(self._prompt_tokens),
                completion_tokens=self._completion_tokens,
            ),
            handoff=None if newest is None else pack_handoff(newest),
            attempts=self._attempts,
            choices=ends if len(ends) > 1 else None,
            route=self._route,
        )
