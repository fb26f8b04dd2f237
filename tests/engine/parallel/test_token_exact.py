"""A model that ranks share answers as transformers does, token by token, and as one rank does, whatever is asked."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from runtime.domain.sequence import Sampling
from runtime.engine.core import EngineCore
from tests.engine.answering import GREEDY, answers, prompt, sequence, split
from tests.engine.architectures import ARCHITECTURES
from tests.engine.parallel.groups import GroupCore
from tests.scale import scaled

# What has to be refused: layers that are not known to be splittable, norms over all heads.
REFUSED = ("gpt2", "gpt-neox", "olmo2", "olmo3")
# Norms of keys, soft caps with windows, experts, fused layers, one head for keys.
KINDS = scaled(
    ("qwen3", "gemma2", "mixtral", "phi3", "llama-linear-mqa"),
    tuple(kind for kind in ARCHITECTURES if kind not in REFUSED),
)
SIZES = (33, 100)
Expected = Callable[[str, tuple[int, ...]], list[int]]
SAMPLING = Sampling(max_tokens=40, temperature=0.9, top_k=50, top_p=0.95, seed=7, ignore_eos=True)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_token_exact_cold_warm_and_together(kind: str, shared: GroupCore, expected: Expected) -> None:
    core = shared(kind)
    for name in ("cold", "warm"):
        for size in SIZES:
            assert answers(core, [sequence(name, prompt(size), GREEDY)])[name] == expected(kind, prompt(size))
    crowd = [sequence(f"{copy}:{size}", prompt(size), GREEDY) for copy in range(3) for size in SIZES]
    for name, tokens in answers(core, crowd).items():
        assert tokens == expected(kind, prompt(int(name.split(":")[1])))


@pytest.mark.parametrize("kind", scaled(("llama", "llama-linear-mqa"), KINDS))
def test_pages_go_from_two_ranks_to_one_and_from_one_to_two(
    kind: str, shared: GroupCore, engine: Callable[..., EngineCore], expected: Expected
) -> None:
    two, one = shared(kind), engine(kind)
    for prefill, decode, size in ((two, one, 100), (one, two, 101)):
        for name in ("cold", "warm"):
            asked = sequence(name, prompt(size), GREEDY)
            assert split(prefill, decode, asked, lose={1} if name == "cold" else None) == expected(kind, prompt(size))


def test_four_ranks_are_token_exact(shared: GroupCore, expected: Expected) -> None:
    """With biases, of which only one rank may add those of a sum."""
    core = shared("llama-yarn-mha", ranks=4)
    found = answers(core, [sequence("a", prompt(100), GREEDY)])
    assert found["a"] == expected("llama-yarn-mha", prompt(100))


def test_more_ranks_than_heads_for_keys_are_token_exact(shared: GroupCore, expected: Expected) -> None:
    """Four ranks, two of which hold each of the two heads."""
    found = answers(shared("llama", ranks=4), [sequence("a", prompt(100), GREEDY)])
    assert found["a"] == expected("llama", prompt(100))


def test_preempted_sequences_go_on_where_they_were(shared: GroupCore, expected: Expected) -> None:
    crowd = [sequence(str(size), prompt(size), GREEDY) for size in (90, 91, 92)]
    for name, tokens in answers(shared("llama", pages=8), crowd).items():
        assert tokens == expected("llama", prompt(int(name)))


def test_sampling_is_the_same_in_any_batch_and_with_one_rank(
    shared: GroupCore, engine: Callable[..., EngineCore]
) -> None:
    asked = sequence("a", prompt(100), SAMPLING)
    alone = answers(engine(), [asked])["a"]
    crowd = [sequence(str(size), prompt(size), replace(SAMPLING, seed=size)) for size in (5, 60, 90)]
    core = shared("llama", step_tokens=33)
    assert answers(core, [*crowd, asked])["a"] == alone
    assert answers(core, [replace(asked, forced=tuple(alone[:17]))])["a"] == alone[17:]
