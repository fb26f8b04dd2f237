"""What became of the pages of one tier, counted; and told in the log, rarely. Any thread may count."""

import logging
from collections import Counter

from runtime.domain.tiers import Tier, TierReport

_log = logging.getLogger(__name__)


class Counting:
    """`written` and `read` count pages."""

    def __init__(self, tier: Tier) -> None:
        self.written = 0
        self.read = 0
        self._tier = tier
        self._failures: Counter[str] = Counter()

    def failed(self, reason: str, message: str) -> None:
        """What was given up, and is computed instead. The log hears of the first, the second, the fourth and so on."""
        self._failures[reason] += 1
        count = self._failures[reason]
        if count & (count - 1) == 0:
            _log.warning(
                "tier %s: %s; it costs computing, no request fails", self._tier.value, message,
                extra={"reason": reason, "count": count},
            )  # fmt: skip

    def report(self, place: str, pages: int, used_bytes: int, capacity_bytes: int, trouble: str = "") -> TierReport:
        failures = tuple(sorted(self._failures.items()))
        return TierReport(
            self._tier, place, pages, used_bytes, capacity_bytes, self.written, self.read, failures, trouble
        )
