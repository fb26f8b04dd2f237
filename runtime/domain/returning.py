"""How long sessions stay away, by what they wait for: learnt from those that came back."""

import math
from collections import OrderedDict

from runtime.domain.retention import Pause
from runtime.ids import SessionId

# Before anything was seen; tools are quick, and people are not.
_FIRST_S = {Pause.TOOLS: 2.0, Pause.ANSWER: 90.0}
_WEIGHT = 1 / 16
_LEAST_S = 0.05
_KNOWN = 10_000


class Returns:
    """Told seconds of one clock. The mean is of orders of magnitude: pauses are spread over many of them."""

    def __init__(self) -> None:
        self._mean = {pause: math.log(seconds) for pause, seconds in _FIRST_S.items()}
        self._away: OrderedDict[SessionId, tuple[float, Pause]] = OrderedDict()

    def left(self, session: SessionId, pause: Pause, now: float) -> float:
        """It waits for something since `now`; gives for how long, likely."""
        self._away[session] = now, pause
        self._away.move_to_end(session)
        if len(self._away) > _KNOWN:
            self._away.popitem(last=False)
        return math.exp(self._mean[pause])

    def back(self, session: SessionId, now: float) -> None:
        left = self._away.pop(session, None)
        if left is not None:
            since, pause = left
            self._mean[pause] += _WEIGHT * (math.log(max(now - since, _LEAST_S)) - self._mean[pause])
