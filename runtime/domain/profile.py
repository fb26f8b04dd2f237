"""How fast a worker is, as it was measured at work: learnt from its engine's steps, told to whoever places turns."""

from dataclasses import dataclass

# Prompts are told apart by where a chunk of them ends: up to so many tokens, and twice that, and so on.
_FIRST = 256
# A shorter chunk says what a step costs, and nothing of how fast prompts are prefilled.
_LEAST_TOKENS = 16
_NEWEST = 0.2
_KEPT = 0.8


@dataclass(frozen=True, slots=True)
class Profile:
    """`prefill`: milliseconds that the first so many tokens of a prompt take, both rising; `decode`: milliseconds of a
    step in which so many sequences decode; linear between, beyond the last as before it. `links`: gigabytes a second
    by each transport that it has sent pages by. What was not measured is empty."""

    prefill: tuple[tuple[int, float], ...] = ()
    decode: tuple[tuple[int, float], ...] = ()
    links: tuple[tuple[str, float], ...] = ()


UNMEASURED = Profile()


@dataclass(slots=True)
class _Rate:
    """Tokens and the milliseconds they took; older ones count ever less."""

    tokens: float = 0.0
    ms: float = 0.0

    def add(self, tokens: int, ms: float) -> None:
        self.tokens = self.tokens * _KEPT + tokens
        self.ms = self.ms * _KEPT + ms


class Speedometer:
    def __init__(self) -> None:
        self._decode: dict[int, float] = {}
        self._prefill: dict[int, _Rate] = {}

    def ran(self, prefilled: int, decoding: int, reached: int, ms: float) -> None:
        """A step took so long: with `decoding` sequences, and with a prefill of so many tokens of prompts, the longest
        of which it brought to `reached` tokens."""
        if prefilled:
            self._prefilled(prefilled, reached, max(ms - self._alone(decoding), 0.0))
        elif decoding:
            batch = 1 << (decoding - 1).bit_length()
            known = self._decode.get(batch, ms)
            self._decode[batch] = known + _NEWEST * (ms - known)

    def profile(self, links: tuple[tuple[str, float], ...] = ()) -> Profile:
        return Profile(self._curve(), tuple(sorted(self._decode.items())), links)

    def _prefilled(self, tokens: int, reached: int, ms: float) -> None:
        if tokens >= _LEAST_TOKENS:
            band = max((reached - 1).bit_length(), _FIRST.bit_length() - 1)
            self._prefill.setdefault(1 << band, _Rate()).add(tokens, ms)

    def _alone(self, decoding: int) -> float:
        """What those who decode take of a step, by the nearest batch that was measured without a prefill."""
        if not decoding or not self._decode:
            return 0.0
        return self._decode[min(self._decode, key=lambda batch: abs(batch - decoding))]

    def _curve(self) -> tuple[tuple[int, float], ...]:
        """Where a band was not measured, the one before it counts, or else the first that was."""
        if not self._prefill:
            return ()
        bands = sorted(self._prefill)
        rate = self._prefill[bands[0]]
        curve, total, below, edge = list[tuple[int, float]](), 0.0, 0, _FIRST
        while edge <= bands[-1]:
            rate = self._prefill.get(edge, rate)
            total += (edge - below) * rate.ms / rate.tokens
            curve.append((edge, total))
            below, edge = edge, 2 * edge
        return tuple(curve)
