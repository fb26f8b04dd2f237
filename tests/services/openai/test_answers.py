"""The JSON of answers: any text survives it, on one line."""

import json

from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.generation import Delta
from runtime.domain.messages import Handoff
from runtime.domain.sequence import FinishReason, Sampled
from runtime.engine.simulated import SimulatedTokenizer
from runtime.ids import WorkerId
from runtime.services.openai.answers import Answer, ChatAnswer, CompletionAnswer, Head, Tally
from runtime.services.openai.prompts import ShownPrompt
from runtime.services.openai.spelling import Spelling

HEAD = Head("id-1", 1, 'a "model"', "fp")
SPELLING = Spelling(SimulatedTokenizer())
SHOWN = ShownPrompt((1, 2, 3), SPELLING)


def chat(*, usage_asked: bool = False) -> Answer:
    return ChatAnswer(HEAD, SPELLING, SHOWN, logprobs=False, usage_asked=usage_asked)


@given(st.text(min_size=1), st.booleans())
def test_any_text_is_one_line_of_ascii_and_comes_back(text: str, usage_asked: bool) -> None:
    event = chat(usage_asked=usage_asked).pieces(Delta(0, (Sampled(257),), text))
    line = event.removesuffix("\n\n")
    assert line.isascii()
    assert len(line.splitlines()) == 1
    chunk = json.loads(line.removeprefix("data: "))
    assert chunk["choices"][0]["delta"] == {"content": text}
    assert chunk["model"] == HEAD.model
    assert ("usage" in chunk) is usage_asked


@given(st.text())
def test_a_whole_answer_has_the_fields_of_its_chunks(text: str) -> None:
    answer = CompletionAnswer(HEAD, SPELLING, SHOWN, logprobs=False, usage_asked=False)
    tally = Tally(3)
    tally.add(Delta(0, (Sampled(257),), text, FinishReason.STOP))
    whole = json.loads(answer.whole([answer.choice(text, (), tally)], [tally]))
    assert whole["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}]
    closing = json.loads(answer.closing(tally).removeprefix("data: "))
    assert set(whole) - {"usage"} == set(closing)


def test_after_a_failover_usage_is_of_the_first_attempt_and_the_handoff_of_the_last() -> None:
    first = Handoff(100, cached_tokens=32, prefill_cached_tokens=64, prefill_worker=WorkerId("prefill-0"))
    again = Handoff(105, cached_tokens=0)
    tally = Tally(100)
    tally.add(Delta(0, (Sampled(257),) * 5, "x", handoff=first))
    tally.add(Delta(5, (Sampled(257),) * 2, "y", FinishReason.LENGTH, again, attempt=2))
    assert tally.usage() == {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "total_tokens": 107,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
    assert tally.baton()["attempts"] == 2
    assert tally.baton()["handoff"]["prompt_tokens"] == 105


def test_a_token_that_is_part_of_a_character_has_no_bytes() -> None:
    class Half(SimulatedTokenizer):
        def decoder(self) -> "Half":  # type: ignore[override]
            return self

        def push(self, token: int) -> str:
            return ""

        def flush(self) -> str:
            return "\N{REPLACEMENT CHARACTER}"

    assert Spelling(Half()).utf8(1) is None
    assert Spelling(SimulatedTokenizer()).utf8(257) == list(b" alfa")
