"""Pages that leave one engine core and land in another, whole and in part."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.domain.pages import extend_chain
from runtime.domain.steps import Admitted, Exported, Land, Prefill, Prefilled, Reserved, Run, Submit
from runtime.engine.simulated import continuation
from runtime.ids import SequenceId
from tests.engine.cores import AWAITING, GREEDY, PAGE, SALT, generate, new_core, prefilled, prompt_of, run, sequence
from tests.scale import scaled


@pytest.mark.parametrize("length", [2, 4, 5, 6, 9, 17])
def test_pages_of_another_core_give_the_same_answer(length: int) -> None:
    prompt = prompt_of(length)
    core = new_core()
    core.apply(Submit(sequence("a", prompt), AWAITING))
    assert run(core).events == [Reserved(SequenceId("a"), 0)]
    for frame in prefilled(prompt):
        core.apply(Land(SequenceId("a"), frame))
    core.apply(Run(SequenceId("a")))
    ran = run(core)
    assert ran.tokens("a") == continuation(prompt, GREEDY)
    assert ran.events[0] == Admitted(SequenceId("a"), 0, length - 1)
    assert ran.steps[0].ran_tokens == 1, "only the last token of the prompt runs here"


@settings(max_examples=scaled(30, 500))
@given(st.integers(2, 20), st.sets(st.integers(0, 4)), st.booleans())
def test_whatever_pages_are_missing_are_computed_here(length: int, missing: set[int], backwards: bool) -> None:
    prompt = prompt_of(length)
    core = new_core()
    core.apply(Submit(sequence("a", prompt), AWAITING))
    run(core)
    for frame in sorted(prefilled(prompt), key=lambda frame: frame.index, reverse=backwards):
        if frame.index not in missing:
            core.apply(Land(SequenceId("a"), frame))
    core.apply(Run(SequenceId("a")))
    assert run(core).tokens("a") == continuation(prompt, GREEDY)


def test_only_what_is_not_here_has_to_land() -> None:
    core, prompt = new_core(), prompt_of(17)
    generate(core, sequence("first", prompt[:10]))
    core.apply(Submit(sequence("a", prompt), AWAITING))
    assert run(core).events == [Reserved(SequenceId("a"), 8)]
    for frame in prefilled(prompt, first_page=2):
        core.apply(Land(SequenceId("a"), frame))
    core.apply(Run(SequenceId("a")))
    ran = run(core)
    assert ran.events[0] == Admitted(SequenceId("a"), 8, 8)
    assert ran.tokens("a") == continuation(prompt, GREEDY)


def test_a_damaged_page_would_change_the_answer() -> None:
    # The proof that the tests above can fail.
    core, prompt = new_core(), prompt_of(9)
    core.apply(Submit(sequence("a", prompt), AWAITING))
    run(core)
    for frame in prefilled(prompt):
        damaged = bytes([frame.payload[0] ^ 1]) + frame.payload[1:]
        core.apply(Land(SequenceId("a"), replace(frame, payload=damaged) if frame.index == 1 else frame))
    core.apply(Run(SequenceId("a")))
    assert run(core).tokens("a") != continuation(prompt, GREEDY)


def test_pages_are_exported_as_they_fill_each_once_and_the_tail_at_the_end() -> None:
    core, prompt = new_core(step_tokens=8), prompt_of(24)
    core.apply(Submit(sequence("p", prompt), Prefill(22, first_page=1)))
    ran = run(core)
    assert [(frame.index, frame.valid_tokens) for frame in ran.frames()] == [(1, 4), (2, 4), (3, 4), (4, 4), (5, 2)]
    assert len([step for step in ran.steps if any(isinstance(event, Exported) for event in step.events)]) == 3
    assert ran.events[-1] == Prefilled(SequenceId("p"), 0)
    chain = extend_chain([], SALT, prompt, PAGE, core.spec.kv_fingerprint)
    assert [frame.page for frame in ran.frames()][:4] == chain[1:5]


def test_a_prefill_tells_what_it_did_not_compute() -> None:
    core, prompt = new_core(), prompt_of(13)
    for name in "pq":
        core.apply(Submit(sequence(name, prompt), Prefill(12, first_page=0)))
        ran = run(core)
    assert ran.events[-1] == Prefilled(SequenceId("q"), 12)
    assert len(ran.frames()) == 3
    assert sum(step.ran_tokens for step in ran.steps) == 0
