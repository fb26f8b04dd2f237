"""The engine core, token by token beside its oracle: chunks, batches, caches, preemptions, forced tokens, refusals."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.domain.batching import Limits
from runtime.domain.pages import extend_chain
from runtime.domain.scoring import PromptScores
from runtime.domain.sequence import FinishReason, Sampled, Sampling
from runtime.domain.steps import (
    Admitted,
    Cancel,
    Chunk,
    DecodeAwaiting,
    DecodeLocal,
    Generated,
    Land,
    NoRoom,
    Prefill,
    Reserved,
    Run,
    Submit,
)
from runtime.engine.core import EngineCore, SampleRow
from runtime.engine.simulated import SimulatedCompute, SimulatedDecoder, continuation, simulated_spec
from runtime.ids import SequenceId
from tests.engine.cores import (
    AWAITING,
    GREEDY,
    LOCAL,
    PAGE,
    SALT,
    generate,
    new_core,
    prefilled,
    prompt_of,
    run,
    sequence,
    text_of,
)
from tests.scale import scaled

# Generating


@pytest.mark.parametrize("step_tokens", [1, 3, 4, 8, 64])
@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 8, 9, 31])
def test_a_prompt_of_any_length_in_chunks_of_any_size_is_continued_as_it_should(length: int, step_tokens: int) -> None:
    prompt = prompt_of(length)
    ran = generate(new_core(step_tokens=step_tokens), sequence("a", prompt))
    assert ran.tokens("a") == continuation(prompt, GREEDY)
    assert "".join(event.text for event in ran.generated("a")) == text_of(ran.tokens("a"))
    assert [event.finish for event in ran.generated("a")] == [None] * 8 + [FinishReason.LENGTH]


def test_sequences_of_one_batch_do_not_disturb_each_other() -> None:
    prompts = {name: prompt_of(3 + 5 * place, first=place) for place, name in enumerate("abcde")}
    samplings = {name: Sampling(max_tokens=6 + place, seed=place) for place, name in enumerate("abcde")}
    ran = generate(new_core(), *(sequence(name, prompts[name], samplings[name]) for name in prompts))
    assert {name: ran.tokens(name) for name in prompts} == {
        name: continuation(prompts[name], samplings[name]) for name in prompts
    }
    assert max(step.ran_sequences for step in ran.steps) > 1


def test_a_seed_gives_the_same_answer_and_another_seed_another() -> None:
    prompt = prompt_of(9)
    one, other = Sampling(max_tokens=9, seed=1), Sampling(max_tokens=9, seed=2)
    ran = generate(new_core(), *(sequence(name, prompt, each) for name, each in (("a", one), ("b", one), ("c", other))))
    assert ran.tokens("a") == ran.tokens("b") != ran.tokens("c")


def test_a_cached_prompt_gives_the_same_answer_without_being_computed() -> None:
    core, prompt = new_core(), prompt_of(17)
    cold, warm = generate(core, sequence("a", prompt)), generate(core, sequence("b", prompt))
    assert cold.tokens("a") == warm.tokens("b")
    assert [event for event in warm.events if isinstance(event, Admitted)] == [Admitted(SequenceId("b"), 16, 0)]
    assert warm.steps[0].ran_tokens == 1


def test_another_tenants_cache_is_not_used() -> None:
    core, prompt = new_core(), prompt_of(17)
    generate(core, sequence("a", prompt))
    ran = generate(core, sequence("b", prompt, salt=b"another"))
    assert ran.events[0] == Admitted(SequenceId("b"), 0, 0)


def test_a_stop_string_ends_the_answer_and_is_not_shown() -> None:
    prompt = prompt_of(5)
    expected = continuation(prompt, GREEDY)
    word = text_of(expected[3:4])
    ran = generate(new_core(), sequence("a", prompt, replace(GREEDY, stop=(word,))))
    place = [text_of([token]) for token in expected].index(word)
    assert ran.tokens("a") == expected[: place + 1]
    assert "".join(event.text for event in ran.generated("a")) == text_of(expected[:place])
    assert ran.generated("a")[-1].finish is FinishReason.STOP


@settings(max_examples=scaled(30, 500))
@given(
    st.lists(st.tuples(st.integers(1, 14), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(6, 12),
    st.integers(1, 9),
)
def test_however_small_the_pool_every_sequence_is_continued_as_it_should(
    shapes: list[tuple[int, int, int]], pages: int, step_tokens: int
) -> None:
    core = new_core(pages, step_tokens, max_running=3)
    asked = {
        str(place): sequence(str(place), prompt_of(length, first), Sampling(max_tokens=count, seed=place))
        for place, (length, count, first) in enumerate(shapes)
    }
    ran = generate(core, *asked.values())
    for name, each in asked.items():
        assert ran.tokens(name) == continuation(each.prompt, each.sampling)
    assert core.load().pages.owned == 0


def test_a_preempted_sequence_is_computed_anew_and_gives_no_token_twice() -> None:
    core = new_core(pages=6)
    sampling = Sampling(max_tokens=12, temperature=0.0)
    prompts = {name: prompt_of(6, first) for first, name in enumerate("ab")}
    ran = generate(core, *(sequence(name, prompt, sampling) for name, prompt in prompts.items()))
    assert {name: ran.tokens(name) for name in prompts} == {
        name: continuation(prompt, sampling) for name, prompt in prompts.items()
    }
    admissions = Counter(event.sequence for event in ran.events if isinstance(event, Admitted))
    assert max(admissions.values()) > 1, "the pool was meant to be too small"


# Forced tokens


@pytest.mark.parametrize("cut", range(9))
def test_after_any_forced_beginning_the_answer_goes_on_as_it_would_have(cut: int) -> None:
    prompt = prompt_of(6)
    expected = continuation(prompt, GREEDY)
    ran = generate(new_core(), sequence("a", prompt, forced=expected[:cut]))
    assert ran.tokens("a") == expected[cut:]
    assert ran.generated("a")[0].index == cut
    assert "".join(event.text for event in ran.generated("a")) == text_of(expected[cut:])


def test_a_stop_string_that_began_in_the_forced_tokens_is_found() -> None:
    prompt = prompt_of(6)
    expected = continuation(prompt, GREEDY)
    stop = text_of(expected[2:4])
    ran = generate(new_core(), sequence("a", prompt, replace(GREEDY, stop=(stop,)), forced=expected[:3]))
    assert ran.tokens("a") == expected[3:4]
    assert ran.generated("a")[0].text == ""


@pytest.mark.parametrize("work", [LOCAL, AWAITING])
def test_forced_tokens_that_end_the_answer_end_it_without_a_new_token(work: DecodeLocal | DecodeAwaiting) -> None:
    core = new_core()
    forced = continuation(prompt_of(6), GREEDY)
    core.apply(Submit(sequence("a", prompt_of(6), forced=forced), work))
    assert run(core).events == [Generated(SequenceId("a"), 9, (), "", FinishReason.LENGTH)]


def test_forced_tokens_beyond_the_end_are_refused() -> None:
    core = new_core()
    core.apply(Submit(sequence("a", prompt_of(6), forced=(280,) * 10), LOCAL))
    error = run(core).error()
    assert (error.field, error.message) == ("forced", "10 tokens are forced, but token 9 ends the answer")


# Room, refusals and cancels


def test_without_room_a_reservation_is_refused_until_pages_are_freed() -> None:
    core = new_core(pages=4)
    core.apply(Submit(sequence("a", prompt_of(12), replace(GREEDY, max_tokens=1)), AWAITING))
    run(core)
    core.apply(Submit(sequence("b", prompt_of(9), replace(GREEDY, max_tokens=1)), AWAITING))
    refused = run(core)
    assert refused.events == [NoRoom(SequenceId("b"))]
    assert not any(step.pages_freed for step in refused.steps)
    core.apply(Cancel(SequenceId("a")))
    assert [step.pages_freed for step in run(core).steps] == [True]
    core.apply(Submit(sequence("b", prompt_of(9), replace(GREEDY, max_tokens=1)), AWAITING))
    assert run(core).events == [Reserved(SequenceId("b"), 0)]


@pytest.mark.parametrize(
    ("length", "max_tokens", "field"),
    [(40, 1, "prompt"), (39, 2, "max_tokens"), (1, 40, "max_tokens"), (41, 1, "prompt")],
)
@pytest.mark.parametrize("core", [new_core(pages=10), new_core(max_tokens=40)], ids=["pool", "model"])
def test_what_could_never_fit_is_refused_at_once(core: EngineCore, length: int, max_tokens: int, field: str) -> None:
    core.apply(Submit(sequence("a", prompt_of(length), replace(GREEDY, max_tokens=max_tokens)), LOCAL))
    error = run(core).error()
    assert (error.status.code, error.field) == ("context", field)
    assert f"{length} tokens and max_tokens is {max_tokens}, together more than the 40 tokens" in error.message


def test_a_context_is_no_longer_than_the_pool() -> None:
    assert new_core(pages=10).spec.max_tokens == 40
    assert new_core(pages=10, max_tokens=39).spec.max_tokens == 39


def test_what_just_fits_is_served() -> None:
    ran = generate(new_core(pages=10), sequence("a", prompt_of(31)))
    assert ran.tokens("a") == continuation(prompt_of(31), GREEDY)


def test_a_token_that_the_model_has_not_is_refused_before_it_reaches_it() -> None:
    core = new_core()
    core.apply(Submit(sequence("a", [1, core.spec.vocab]), LOCAL))
    assert run(core).error().field == "prompt"


@pytest.mark.parametrize("steps", range(8))
def test_a_cancel_at_any_time_leaves_nothing(steps: int) -> None:
    core = new_core()
    core.apply(Submit(sequence("a", prompt_of(20)), LOCAL))
    core.apply(Submit(sequence("p", prompt_of(20, 1)), Prefill(19, 0)))
    core.apply(Submit(sequence("w", prompt_of(20, 2)), AWAITING))
    for _ in range(steps):
        core.step()
    for name in "apw":
        core.apply(Cancel(SequenceId(name)))
    run(core)
    load = core.load()
    assert (load.running, load.waiting, load.awaiting, load.pages.owned, load.pages.landing) == (0, 0, 0, 0, 0)


def test_commands_for_a_sequence_that_is_gone_change_nothing() -> None:
    core = new_core()
    (frame, *_) = prefilled(prompt_of(9))
    for command in (Cancel(SequenceId("a")), Run(SequenceId("a")), Land(SequenceId("a"), frame)):
        core.apply(command)
    assert not core.busy


def test_an_idle_core_is_not_busy_and_its_steps_are_counted() -> None:
    core = new_core()
    assert not core.busy
    ran = generate(core, sequence("a", prompt_of(5)))
    assert [step.step for step in ran.steps] == list(range(1, len(ran.steps) + 1))
    assert ran.steps[-1].pages_freed
    assert not core.busy


def test_what_the_cache_gains_and_loses_is_told() -> None:
    core, prompt = new_core(pages=4), prompt_of(8)
    chain = extend_chain([], SALT, prompt, PAGE, core.spec.kv_fingerprint)
    few = replace(GREEDY, max_tokens=2)
    ran = generate(core, sequence("a", prompt, few))
    assert [ident for step in ran.steps for ident in step.stored] == chain
    assert core.match(chain) == 2
    ran = generate(core, sequence("b", prompt_of(13, 5), few))
    assert set(chain) & {ident for step in ran.steps for ident in step.removed}


class Broken(SimulatedCompute):
    def run(self, chunks: tuple[Chunk, ...], rows: tuple[SampleRow, ...]) -> tuple[list[Sampled], list[PromptScores]]:
        raise RuntimeError("the device is gone")


def test_a_device_that_fails_fails_the_step() -> None:
    limits = Limits(8, 4)
    core = EngineCore(simulated_spec("s", PAGE, 99), 8, limits, Broken(8, PAGE), frozenset(), SimulatedDecoder)
    core.apply(Submit(sequence("a", [1]), LOCAL))
    with pytest.raises(RuntimeError, match="the device is gone"):
        core.step()
