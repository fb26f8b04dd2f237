"""How much prefill a step may carry beside sequences that decode: so much that their next token still comes in time.

Learns from the steps that ran what decoding and prefilling take here; is told the seconds, never measures them.
"""

# A step with prefill is planned to take no longer than so many without: a bound in seconds alone would let the tokens
# of a fast engine come ten times as late beside a long prompt. Twice is the aim, for the steps that take longest too.
_SLOWDOWN = 1.8
_NEWEST = 0.2
_CAUTION = 8


class StepBudget:
    """`step_tokens` bounds every step; `itl_s`, and less than twice what decoding takes alone, bound the seconds of one
    in which sequences decode; None for neither.

    A prefill goes on by `least_tokens` a step at the least, however late the decoding ones are for it, unless these are
    as many as the step has tokens.
    """

    def __init__(self, step_tokens: int, itl_s: float | None, least_tokens: int) -> None:
        self._most = step_tokens
        self._itl_s = itl_s
        self._least = min(least_tokens, step_tokens)
        self._decode_s: float | None = None
        self._token_s: float | None = None

    def prefill_tokens(self, decoding: int) -> int:
        """Tokens of prefill for the next step, in which so many sequences decode."""
        left = max(self._most - decoding, 0)
        if self._itl_s is None or not decoding:
            return left
        if self._token_s is None or self._decode_s is None:
            return min(left, max(self._most // _CAUTION, self._least))
        room_s = min(self._itl_s, _SLOWDOWN * self._decode_s) - self._decode_s
        # An engine that takes no time at all has room for everything.
        room = int(room_s / self._token_s) if self._token_s else left
        return min(left, max(room, self._least))

    def took(self, prefilled: int, decoding: int, seconds: float) -> None:
        """A step with so many tokens of prefill and so many decoding sequences ran for so long."""
        if not prefilled:
            self._decode_s = _blended(self._decode_s, seconds)
            return
        alone_s = (self._decode_s or 0.0) if decoding else 0.0
        self._token_s = _blended(self._token_s, max(seconds - alone_s, 0.0) / prefilled)


def _blended(known: float | None, newest: float) -> float:
    return newest if known is None else (1 - _NEWEST) * known + _NEWEST * newest
