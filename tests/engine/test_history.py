"""What an output forbids and counts is a function of prompt and output, however it was pushed."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.domain.sampling import Penalties
from runtime.domain.sequence import Sampling
from runtime.engine.history import History

TOKENS = st.lists(st.integers(0, 4), max_size=12)
ENDERS = frozenset({9})


def history(sampling: Sampling, prompt: list[int], output: list[int]) -> History:
    made = History(sampling, prompt, ENDERS)
    for token in output:
        made.push(token)
    return made


@given(TOKENS, st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), max_size=8))
def test_the_last_token_of_a_banned_sequence_is_forbidden_after_the_others(
    output: list[int], banned: list[list[int]]
) -> None:
    found = history(Sampling(99, banned_tokens=tuple(map(tuple, banned))), [0, 1, 2, 3, 4] * 4, output).forbidden()
    expected = {
        each[-1]
        for each in banned
        if output[len(output) - len(each) + 1 :] == each[:-1] and len(output) >= len(each) - 1
    }
    assert set(found) == expected


@given(TOKENS, TOKENS)
def test_counts_are_of_the_output_and_repetition_sees_the_prompt_too(prompt: list[int], output: list[int]) -> None:
    both = history(Sampling(99, penalties=Penalties(repetition=2)), prompt, output)
    assert dict(zip(both.tokens, both.counts, strict=True)) == {token: output.count(token) for token in prompt + output}
    alone = history(Sampling(99, penalties=Penalties(presence=1)), prompt, output)
    assert dict(zip(alone.tokens, alone.counts, strict=True)) == {token: output.count(token) for token in output}


def test_nothing_ends_the_answer_before_min_tokens() -> None:
    sampling = Sampling(9, min_tokens=2)
    assert [history(sampling, [1], [3] * length).forbidden() for length in (0, 1, 2)] == [[9], [9], []]


def test_options_that_look_at_no_token_need_no_history() -> None:
    assert not History.needed(Sampling(9, temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, typical_p=0.5, logprobs=3))
    for sampling in (
        Sampling(9, penalties=Penalties(frequency=0.1)),
        Sampling(9, logit_bias=((1, 1.0),)),
        Sampling(9, min_tokens=1),
        Sampling(9, banned_tokens=((1,),)),
    ):
        assert History.needed(sampling)
