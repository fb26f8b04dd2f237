"""What the sampling of one sequence has to know of its tokens. A pure function of prompt and output; never tensors.

Kept by pushing every output token once, forced and sampled alike, so that a replayed prefix leaves exactly the state
that sampling it left. A sequence whose options look at no token has no history, and its steps cost nothing.
"""

from array import array
from collections.abc import Sequence

from runtime.domain.sampling import NO_PENALTIES
from runtime.domain.sequence import Sampling
from runtime.engine.grammar import Constraint
from runtime.engine.output import enders


class History:
    """`tokens` are the different tokens that penalties act on, and `counts` how often the output has each of them;
    `biased` and `biases` are the logit bias. Each pair has one length. `constraint` is where the output is in the
    grammar of the sampling."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        eos_ids: frozenset[int],
        constraint: Constraint | None = None,
    ) -> None:
        self.constraint = constraint
        self.tokens = array("q")
        self.counts = array("f")
        self.biased = array("q", [token for token, _ in sampling.logit_bias])
        self.biases = array("f", [bias for _, bias in sampling.logit_bias])
        self._places: dict[int, int] = {}
        self._counts = sampling.penalties != NO_PENALTIES
        self._min_tokens = sampling.min_tokens
        self._enders = tuple(enders(sampling, eos_ids))
        self._banned = tuple(each[0] for each in sampling.banned_tokens if len(each) == 1)
        if constraint is not None and sampling.ignore_eos:
            # The grammar allows them wherever it may end, and there they would do nothing.
            self._banned += tuple(eos_ids)
        # By the last token that has to be there before the banned one.
        self._after: dict[int, list[tuple[int, ...]]] = {}
        for each in sampling.banned_tokens:
            if len(each) > 1:
                self._after.setdefault(each[-2], []).append(each)
        self._remembered = max(map(len, sampling.banned_tokens), default=0)
        self._recent: list[int] = []
        self._length = 0
        if sampling.penalties.repetition != 1:
            for token in prompt:
                self._place(token)

    @staticmethod
    def needed(sampling: Sampling) -> bool:
        return bool(
            sampling.penalties != NO_PENALTIES
            or sampling.logit_bias
            or sampling.min_tokens
            or sampling.banned_tokens
            or sampling.grammar is not None
        )

    def push(self, token: int) -> None:
        """One more token of the output."""
        self._length += 1
        if self.constraint is not None:
            self.constraint.push(token)
        if self._counts:
            self.counts[self._place(token)] += 1
        if self._after:
            self._recent.append(token)
            del self._recent[: -self._remembered]

    def forbidden(self) -> list[int]:
        """What must not come next."""
        tokens = list(self._banned)
        if self._length < self._min_tokens:
            tokens += self._enders
        if self._recent:
            for each in self._after.get(self._recent[-1], ()):
                if tuple(self._recent[1 - len(each) :]) == each[:-1]:
                    tokens.append(each[-1])
        return tokens

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.counts.append(0)
        return place
