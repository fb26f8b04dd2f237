"""What a core tells of pages that filled, and of what they hold when it is asked."""

from runtime.domain.pages import ROOT, extend_chain
from runtime.domain.steps import Cancel, Copied, Copy, Filled, Land, Submit
from runtime.engine.simulated import continuation
from runtime.ids import PageId, SequenceId
from tests.engine.cores import (
    AWAITING,
    GREEDY,
    PAGE,
    SALT,
    Ran,
    generate,
    new_core,
    prefilled,
    prompt_of,
    run,
    sequence,
)

PROMPT = prompt_of(14)


def chain_of(tokens: tuple[int, ...]) -> list[PageId]:
    spec = new_core().spec
    return extend_chain([], SALT, tokens, PAGE, spec.kv_fingerprint)


def filled(ran: Ran) -> list[Filled]:
    return [each for step in ran.steps for each in step.filled]


def test_every_page_that_fills_is_told_with_its_place_and_what_it_continues() -> None:
    core = new_core()
    core.apply(Submit(sequence("a", PROMPT), AWAITING))
    run(core)
    core.apply(Cancel(SequenceId("a")))
    ran = generate(core, sequence("a", PROMPT))
    chain = chain_of((*PROMPT, *continuation(PROMPT, GREEDY)[:-1]))
    told = filled(ran)
    assert [page for each in told for page in each.pages] == chain
    assert [each.first for each in told] == [sum(len(before.pages) for before in told[:n]) for n in range(len(told))]
    assert [each.parent for each in told] == [chain[each.first - 1] if each.first else ROOT for each in told]
    assert {each.salt for each in told} == {SALT}
    assert "salt=" not in repr(told)


def test_pages_of_the_cache_are_told_anew_for_who_uses_them() -> None:
    core = new_core()
    generate(core, sequence("a", PROMPT))
    again = filled(generate(core, sequence("b", PROMPT)))
    assert [each.first for each in again][:1] == [0]
    assert set(chain_of(PROMPT)) <= {page for each in again for page in each.pages}


def test_a_copy_is_what_a_prefill_worker_would_have_sent_and_what_is_gone_is_told_as_gone() -> None:
    core, chain = new_core(), chain_of(PROMPT)
    generate(core, sequence("a", PROMPT))
    core.apply(Copy((*chain, PageId(b"never seen here."))))
    (step,) = run(core).steps
    sent = {frame.page: bytes(frame.payload) for frame in prefilled(PROMPT)}
    assert step.copied == (*(Copied(page, sent[page]) for page in chain), Copied(PageId(b"never seen here."), None))
    assert not core.busy, "they are told once"


def test_pages_that_landed_for_nobody_stay_in_the_cache() -> None:
    core, chain = new_core(), chain_of(PROMPT)
    core.apply(Submit(sequence("loader", PROMPT), AWAITING))
    run(core)
    for frame in prefilled(PROMPT)[:2]:
        core.apply(Land(SequenceId("loader"), frame))
    core.apply(Cancel(SequenceId("loader")))
    run(core)
    assert core.match(chain) == 2
    core.check()
