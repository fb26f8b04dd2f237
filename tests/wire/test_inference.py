"""Deltas as messages: whoever reads the messages has the whole answer, however the deltas were gathered."""

import random

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
    messages = [answer.pack(alone(deltas[start : start + together])) for start in range(0, len(deltas), together)]
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


def alone(deltas: list[Delta]) -> list[tuple[int, Delta]]:
    return [(0, delta) for delta in deltas]


@given(st.lists(words.answers(), min_size=2, max_size=4), st.integers(1, 5), st.integers(0, 9), st.randoms())
def test_several_answers_survive_any_mixing(
    given_: list[list[Delta]], together: int, withheld: int, source: random.Random
) -> None:
    order = [number for number, deltas in enumerate(given_) for _ in deltas]
    source.shuffle(order)
    left = [list(deltas) for deltas in given_]
    arrivals = [(number, left[number].pop(0)) for number in order]
    answer = Answer(10, len(given_), logprobs=False)
    messages = [answer.pack(arrivals[at : at + together], withheld) for at in range(0, len(arrivals), together)]
    assert [message.HasField("final") for message in messages] == [False] * (len(messages) - 1) + [True]
    events = [event for message in messages for event in message.events]
    final = messages[-1].final
    for number, deltas in enumerate(given_):
        sampled = [each for delta in deltas for each in delta.tokens]
        mine = [event for event in events if event.choice == number]
        assert [(event.index, event.id) for event in mine] == list(enumerate(each.token for each in sampled))
        end = final.choices[number]
        assert "".join(event.text for event in mine) + end.text == "".join(delta.text for delta in deltas)
        assert unpack_finish(end.finish_reason, "finish") == deltas[-1].finish
    assert final.usage.completion_tokens == len(events) + withheld
    assert unpack_handoff(final.handoff) == given_[0][0].handoff
    assert final.attempts == given_[0][-1].attempt


def handoff(cached: int, prefill_cached: int) -> Handoff:
    return Handoff(prompt_tokens=100, cached_tokens=cached, prefill_cached_tokens=prefill_cached)


def test_cached_tokens_are_the_longest_prefix_that_the_first_attempt_found_anywhere() -> None:
    answer = Answer(prompt_tokens=100, logprobs=False)
    answer.pack([(0, Delta(0, (Sampled(1),), "a", handoff=handoff(cached=32, prefill_cached=64)))])
    last = Delta(1, (Sampled(2),), "b", FinishReason.STOP, handoff(cached=96, prefill_cached=0), attempt=2)
    final = answer.pack([(0, last)]).final
    assert final.usage.cached_tokens == 64
    assert final.handoff.cached_tokens == 96, "the handoff is that of the attempt that finished"


def test_a_later_report_of_the_same_attempt_counts() -> None:
    answer = Answer(prompt_tokens=100, logprobs=False)
    answer.pack([(0, Delta(0, (Sampled(1),), "a", handoff=handoff(cached=32, prefill_cached=0)))])
    last = Delta(1, (Sampled(2),), "b", FinishReason.STOP, handoff(cached=32, prefill_cached=64))
    assert answer.pack([(0, last)]).final.usage.cached_tokens == 64


def test_a_prompt_is_text_a_conversation_or_tokens() -> None:
    assert unpack_prompt(pb.Prompt(text="hello")) == "hello"
    assert unpack_prompt(pb.Prompt(tokens=TokenIds(ids=[3, 4]))) == (3, 4)
    messages = [pb.ChatMessage(role="user", content="hi"), pb.ChatMessage(role="assistant")]
    assert unpack_prompt(pb.Prompt(chat=pb.Chat(messages=messages))) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": ""},
    ]
