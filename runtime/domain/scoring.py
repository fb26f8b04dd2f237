"""What a prompt's own tokens are worth to the model: their log-probabilities, and how many of them a request may ask.

Given once, with the first token of the answer. An attempt that goes on after tokens were given owes none.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from runtime.errors import InvalidArgument

# Of a prompt, those of the likeliest included: half a mebibyte in a message, and four in the memory of a worker.
MAX_PROMPT_LOGPROBS = 65_536


@dataclass(frozen=True, slots=True)
class Score:
    """What is wanted of a chunk beside its KV: the log-probabilities of `targets`, the prompt's tokens that follow
    its last so many tokens (but for the one that is sampled from), and of the `top` likeliest in their places."""

    targets: tuple[int, ...]
    top: int


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Of n tokens of a prompt, from the second on, each after those before it: untempered `logprobs` and `ranks` (1 is
    the likeliest), n of each; the `top` likeliest tokens in each place and their log-probabilities, n * `top` of each,
    place after place, the likeliest first."""

    top: int
    logprobs: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    top_tokens: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()

    def likeliest(self, place: int) -> tuple[tuple[int, float], ...]:
        """The `top` (token, logprob) of one of the n places."""
        mine = slice(place * self.top, (place + 1) * self.top)
        return tuple(zip(self.top_tokens[mine], self.top_logprobs[mine], strict=True))


def joined(top: int, parts: Iterable[PromptScores]) -> PromptScores:
    """The scores of chunks that follow each other, as one; `top` is for none. A small vocabulary has fewer likeliest
    tokens than were asked for."""
    found = tuple(parts)
    return PromptScores(
        found[0].top if found else top,
        tuple([each for part in found for each in part.logprobs]),
        tuple([each for part in found for each in part.ranks]),
        tuple([each for part in found for each in part.top_tokens]),
        tuple([each for part in found for each in part.top_logprobs]),
    )


def check_scores(top: int, prompt_tokens: int) -> None:
    """Raise `InvalidArgument` when a prompt of so many tokens has more log-probabilities than a request may ask."""
    count = prompt_tokens * (1 + top)
    if count > MAX_PROMPT_LOGPROBS:
        raise InvalidArgument(
            f"prompt_logprobs is {top} and the prompt has {prompt_tokens} tokens: {count} log-probabilities, "
            f"at most {MAX_PROMPT_LOGPROBS} are given",
            field="prompt_logprobs",
        )
