"""Deltas as messages: whoever reads the messages has the whole answer, however the deltas were gathered."""

from hypothesis import given
from hypothesis import strategies as st

from batonmesh.v1 import inference_pb2 as pb
from batonmesh.v1.common_pb2 import TokenIds
from runtime.domain.generation import Delta
from runtime.domain.messages import Handoff
from runtime.domain.sequence import FinishReason, Sampled
from runtime.wire.handoff import unpack_handoff
from runtime.wire.inference import Answer, unpack_prompt
from runtime.wire.sequence import unpack_finish
from tests.wire import words


@given(words.answers(), st.integers(1, 5), st.booleans())
def test_an_answer_survives_any_gathering_of_its_deltas(deltas: list[Delta], together: int, logprobs: bool) -> None:
    answer = Answer(prompt_tokens=10, logprobs=logprobs)
    messages = [answer.pack(deltas[start : start + together]) for start in range(0, len(deltas), together)]
    events = [event for message in messages for event in message.events]
    sampled = [each for delta in deltas for each in delta.tokens]
    final = messages[-1].final
    assert [event.index for event in events] == list(range(len(sampled)))
    assert [event.id for event in events] == [each.token for each in sampled]
    text = "".join(event.text for event in events) + final.text
    assert text == "".join(delta.text for delta in deltas)
    assert [message.HasField("final") for message in messages] == [False] * (len(messages) - 1) + [True]
    assert unpack_finish(final.finish_reason, "finish") == deltas[-1].finish
    assert final.usage.completion_tokens == len(sampled)
    assert unpack_handoff(final.handoff) == deltas[0].handoff
    assert final.attempts == deltas[-1].attempt
    if logprobs:
        assert [event.logprob for event in events] == [each.logprob for each in sampled]
        assert [list(event.top.ids) for event in events] == [[token for token, _ in each.top] for each in sampled]
    else:
        assert not any(event.HasField("logprob") or event.HasField("top") for event in events)


def handoff(cached: int, prefill_cached: int) -> Handoff:
    return Handoff(prompt_tokens=100, cached_tokens=cached, prefill_cached_tokens=prefill_cached)


def test_cached_tokens_are_the_longest_prefix_that_the_first_attempt_found_anywhere() -> None:
    answer = Answer(prompt_tokens=100, logprobs=False)
    answer.pack([Delta(0, (Sampled(1),), "a", handoff=handoff(cached=32, prefill_cached=64))])
    last = Delta(1, (Sampled(2),), "b", FinishReason.STOP, handoff(cached=96, prefill_cached=0), attempt=2)
    final = answer.pack([last]).final
    assert final.usage.cached_tokens == 64
    assert final.handoff.cached_tokens == 96, "the handoff is that of the attempt that finished"


def test_a_later_report_of_the_same_attempt_counts() -> None:
    answer = Answer(prompt_tokens=100, logprobs=False)
    answer.pack([Delta(0, (Sampled(1),), "a", handoff=handoff(cached=32, prefill_cached=0))])
    last = Delta(1, (Sampled(2),), "b", FinishReason.STOP, handoff(cached=32, prefill_cached=64))
    assert answer.pack([last]).final.usage.cached_tokens == 64


def test_a_prompt_is_text_a_conversation_or_tokens() -> None:
    assert unpack_prompt(pb.Prompt(text="hello")) == "hello"
    assert unpack_prompt(pb.Prompt(tokens=TokenIds(ids=[3, 4]))) == (3, 4)
    messages = [pb.ChatMessage(role="user", content="hi"), pb.ChatMessage(role="assistant")]
    assert unpack_prompt(pb.Prompt(chat=pb.Chat(messages=messages))) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": ""},
    ]
