"""When a worker that died is started again: at once the first time, later and later in a crash loop, then never."""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """More than `deaths` within `window_s` end it; until then each doubles the wait, from `first_s` to `most_s`."""

    first_s: float = 0.25
    most_s: float = 10.0
    deaths: int = 6
    window_s: float = 120.0


class Restarts:
    """One worker's deaths."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._deaths: deque[float] = deque()

    def died(self, now: float) -> float | None:
        """Seconds to wait before the next start, or None when it is not to be started again."""
        policy = self._policy
        while self._deaths and self._deaths[0] <= now - policy.window_s:
            self._deaths.popleft()
        self._deaths.append(now)
        earlier = len(self._deaths) - 1
        if earlier >= policy.deaths:
            return None
        if not earlier:
            return 0.0
        return float(min(policy.first_s * 2 ** (earlier - 1), policy.most_s))
